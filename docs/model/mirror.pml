/* SPDX-License-Identifier: Apache-2.0
 *
 * The concurrency of the mirror, for spin. What it is a model of is told in ../mirror-algorithm.md, with the same names;
 * what it covers and what not, in README.md. `check` runs it.
 *
 * Everything between atomic { and } is one section under the planner's mutex, or one request that a disk carries out.
 * All else interleaves as it likes.
 *
 * The bounds (macros that `check` sets):
 *   OPS       guests' writes in all           START   ZERO | PREZERO | DIRTY, how the job begins
 *   FAILS     requests that fail in all       WORKERS copies in flight
 *   SWITCHES  changes of the copy mode        FLUSHES flushes besides the ones of the job's end
 *   MODE0     the mode at first, 0 background CANCEL  1 if the job may be cancelled by force
 *   TORN      1 if the source is read and written byte by byte, else a request is one step
 *   WIDE      1 if a copy may claim both chunks, and give the second one back
 *   SILENCES  times that the target falls silent
 *   SHAPES    2 for requests of all shapes, 1 for a few that matter
 * Each MUT_… breaks one rule of the algorithm; spin must notice.
 */
#define ZERO    0
#define PREZERO 1
#define DIRTY   2

#define SIZE 4   /* bytes of the disk: two chunks of two */
#define ALL  3   /* both chunks */
#define GARBAGE 99

/* Sets of bytes and sets of chunks are bit masks. Outward, inward, and back. */
#define OUT(b)   (((((b) & 3) != 0) -> 1 : 0) | ((((b) & 12) != 0) -> 2 : 0))
#define IN(b)    (((((b) & 3) == 3) -> 1 : 0) | ((((b) & 12) == 12) -> 2 : 0))
#define BYTES(c) (((((c) & 1) != 0) -> 3 : 0) | ((((c) & 2) != 0) -> 12 : 0))

#define BACKGROUND 0
#define BLOCKING   1
#define BYPASS     2

/* The disks. lasting is what of the target survives a lost cache. */
byte src[SIZE], dst[SIZE], lasting[SIZE];

/* The planner. */
byte D, Z, fresh, flushing;  /* sets of chunks */
byte scanned;                /* bytes */
bit  mode = MODE0;
byte writers, copying;       /* guests' writes in background mode; chunks claimed by copies */
bit  stopped;

/* Claims: guests have the slots 0 and 1, copies 2 and 3. */
byte held[4];                /* bytes claimed, waiting or granted */
byte waits[4];               /* the earlier claims that it waits for, a set of slots */
byte written[4], zeroed[4];  /* sets of chunks, as in op */
byte gmask[2], gvalue[2], gtarget[2], gparts[2]; /* a guest's write: its bytes, its value, and what goes to the target */
byte gmode[2];

/* The runner. */
bit  gate;                   /* closed: guests are held */
byte inFlight;               /* requests of guests past the gate */
bit  copies;                 /* the loop lets copies begin */
bit  token;                  /* the right to flush the target */
bit  failed, cancelled, pivoted, over;
bit  silent;                 /* the target gives no answer */
bit  gaveUp, lateLoss;       /* the flush under way was given up; one that was has failed since */

/* What is left of the bounds. */
byte ops = OPS, fails = FAILS, switches = SWITCHES, flushes = FLUSHES, silences = SILENCES;

/* ---- Invariants */

#define SCANNED(c) ((scanned >= 2) -> ((scanned == SIZE) -> 1 : (c) == 1) : 0)
#define BUSY(c)    ((held[0] | held[1] | held[2] | held[3]) & BYTES(c))
#define UNDERWAY(c) ((gmask[0] | gmask[1]) & BYTES(c))
#define SAME(i)    (src[i] == dst[i])
#define CLEAN(c)   (!(D & (c)) && SCANNED(c) && !BUSY(c) && !UNDERWAY(c))

#define I1 ((!CLEAN(1) || (SAME(0) && SAME(1))) && (!CLEAN(2) || (SAME(2) && SAME(3))))
#define I2 ((!(Z & 1) || BUSY(1) || (!dst[0] && !dst[1])) && (!(Z & 2) || BUSY(2) || (!dst[2] && !dst[3])))
#define I7 (D == 0 && !BUSY(ALL) && !fresh && !flushing && inFlight == 0 && SAME(0) && SAME(1) && SAME(2) && SAME(3) && \
            lasting[0] == dst[0] && lasting[1] == dst[1] && lasting[2] == dst[2] && lasting[3] == dst[3])

#ifdef MUT_SYNC_WRITERS
#define SYNCED (mode == BLOCKING && !stopped && scanned == SIZE && D == 0 && copying == 0)
#elif defined(MUT_SILENT_SYNC)
#define SYNCED (mode == BLOCKING && !stopped && writers == 0 && scanned == SIZE && D == 0 && copying == 0)
#else
#define SYNCED (mode == BLOCKING && !stopped && !silent && writers == 0 && scanned == SIZE && D == 0 && copying == 0)
#endif

bit I1_holds = 1, I2_holds = 1, I7_holds = 1, sync_holds = 1; /* for the names in spin's messages */

/* Every state in which this could move is a violation. I3 to I6 and I8 are seen by what they are for: breaking one of them
 * leaves a chunk that passes for clean or zero and is not. */
active proctype monitor() {
end:
	atomic {
		!stopped && !pivoted && (!I1 || !I2) ->
		I1_holds = I1; I2_holds = I2;
		assert(I1_holds);
		assert(I2_holds)
	}
}

/* ---- The planner */

/* What of a guest's write goes to the target, decided when its claim is granted (I4, I5). */
inline admit(g) {
	if
	:: silent ->
#ifndef MUT_SILENT_CLEAN
		D = D | OUT(gmask[g]);
#endif
		gtarget[g] = 0
#ifndef MUT_UNSCANNED
	:: !silent && gmask[g] >> scanned -> /* some of it was not scanned: all of it counts as dirty */
		D = D | OUT(gmask[g]);
		gtarget[g] = 0
#endif
	:: else ->
#if defined(MUT_PARTIAL_CLEAN)
		gtarget[g] = gmask[g];
		D = D & ~OUT(gmask[g]);
#elif defined(MUT_DIRTY_THROUGH)
		gtarget[g] = gmask[g] & ~BYTES(D & ~IN(gmask[g]));
		D = D & ~OUT(gmask[g]);
#else
		gtarget[g] = gmask[g] & ~BYTES(D & ~IN(gmask[g]));
		D = D & ~IN(gmask[g]);
#endif
	fi;
	if
	:: gvalue[g] ->
#ifndef MUT_KEEP_ZERO
		Z = Z & ~OUT(gtarget[g]);
#endif
		gparts[g] = gtarget[g];
	:: else ->
		gparts[g] = gtarget[g] & ~BYTES(Z);
#ifdef MUT_ZERO_PARTIAL
		zeroed[g] = OUT(gtarget[g]);
#else
		zeroed[g] = IN(gtarget[g]);
#endif
	fi;
	written[g] = OUT(gparts[g]);
	fresh = fresh | written[g]
}

inline wake1(g, me) {
	if
	:: waits[g] & (1 << me) ->
		waits[g] = waits[g] & ~(1 << me);
		if
		:: waits[g] == 0 -> admit(g)
		:: else
		fi
	:: else
	fi
}

/* A claim ends; guests that waited for it last are granted theirs. */
inline release(me) {
	held[me] = 0; written[me] = 0; zeroed[me] = 0;
#ifndef MUT_NO_WAKE
	wake1(0, me);
	wake1(1, me)
#endif
}

#define OVERLAP(s, b) ((held[s] & (b)) -> 1 << (s) : 0)

/* A good flush makes lasting what the target holds; a bad one may lose anything that was not lasting. The loss is noticed in
 * the same step in which the planner learns of it. */
inline flush(ok) {
	atomic {
		!token ->
		flushing = fresh; /* the half that was flushed last is empty */
		fresh = 0;
		if
		:: flushing == 0 -> ok = 1; goto done
		:: else -> token = 1
		fi
	}
	atomic {
		if
#ifdef MUT_LATE_LOSS
		:: lateLoss && !cancelled -> ok = 1; lateLoss = 0; silent = 0; dst[0] = lasting[0]; dst[1] = lasting[1]
#endif
		:: !cancelled && !lateLoss -> ok = 1; silent = 0;
			lasting[0] = dst[0]; lasting[1] = dst[1]; lasting[2] = dst[2]; lasting[3] = dst[3]
		:: lateLoss && !cancelled -> ok = 0; lateLoss = 0
		:: fails > 0 && !cancelled -> fails--; ok = 0
		:: silent && !cancelled && !lateLoss -> /* given up: it may do its work late, or fail late */
			gaveUp = 1; ok = 0;
			if
			:: lasting[0] = dst[0]; lasting[1] = dst[1]; lasting[2] = dst[2]; lasting[3] = dst[3]
			:: true
			:: fails > 0 -> fails--; lateLoss = 1
			fi
		:: cancelled -> ok = 0
		fi
	}
	atomic {
		if
		:: gaveUp ->
			gaveUp = 0;
#ifndef MUT_GIVEN_UP_FLUSH
			fresh = fresh | flushing
#endif
		:: !ok && !gaveUp ->
			if
			:: dst[0] = lasting[0]; dst[1] = lasting[1]
			:: true
			fi;
			if
			:: dst[2] = lasting[2]; dst[3] = lasting[3]
			:: true
			fi;
#if defined(MUT_NO_DISTRUST)
#elif defined(MUT_DISTRUST_HALF)
			D = D | flushing;
			Z = Z & ~flushing;
#else
			D = D | fresh | flushing;
			Z = Z & ~(fresh | flushing);
#endif
#ifndef MUT_ZEROED_KEPT
			zeroed[0] = 0; zeroed[1] = 0; zeroed[2] = 0; zeroed[3] = 0;
#endif
			failed = 1
		:: else ->
#ifdef MUT_ONE_HALF
			fresh = 0
#endif
		fi;
		flushing = 0;
		token = 0
	}
done:
	skip
}

/* ---- Guests */

#define PUT(i)     src[i] = ((gmask[me] & (1 << i)) -> gvalue[me] : src[i])
#define MIRROR(i, v) dst[i] = ((gparts[me] & (1 << i)) -> v : dst[i])

/* A write of zeroes in background mode, after the source has them: the target reads as zero there already. Whether the chunks
 * are dirty makes no difference here, since they stay as they are; the code asks for its count of what is done. */
#ifdef MUT_SKIP_CLAIMED
#define NOTHING_TO_DO(c) (SCANNED(c) && (Z & (c)) == (c))
#else
#define NOTHING_TO_DO(c) (SCANNED(c) && (Z & (c)) == (c) && !BUSY(c))
#endif

proctype guest(byte me) {
	bit bad, targetBad;
end:
	do
	:: atomic {
		/* The guests are alike: the second one begins only beside the first. */
		ops > 0 && !gate && !pivoted && (me == 0 || gmask[0]) ->
		ops--;
		inFlight++;
		if
		:: gvalue[me] = OPS - ops /* each write of data has a value of its own */
		:: gvalue[me] = 0
		fi;
		if
		:: gmask[me] = 3   /* a whole chunk */
		:: gmask[me] = 2   /* a part of one */
		:: gmask[me] = 6   /* parts of two */
#if SHAPES > 1
		:: gmask[me] = 1
		:: gmask[me] = 12
		:: gmask[me] = 7
		:: gmask[me] = 15
#endif
		fi;
		gmode[me] = (stopped -> BYPASS : (silent -> BACKGROUND : mode));
		if
		:: gmode[me] == BACKGROUND ->
			/* Nor does it count as in sync when the next write leaves the target alone. */
			sync_holds = !SYNCED;
			assert(sync_holds);
			writers++;
#ifdef MUT_DIRTY_BEFORE
			D = D | OUT(gmask[me])
#endif
		:: gmode[me] == BLOCKING ->
#ifndef MUT_NO_ORDER
			waits[me] = OVERLAP(0, gmask[me]) | OVERLAP(1, gmask[me]) | OVERLAP(2, gmask[me]) | OVERLAP(3, gmask[me]);
#endif
			held[me] = gmask[me];
			if
			:: waits[me] == 0 -> admit(me)
			:: else
			fi
		:: else
		fi
		}
#if TORN
		atomic { waits[me] == 0 -> PUT(0); PUT(2) }
#endif
		atomic {
			waits[me] == 0 ->
			if
			:: true -> PUT(0); PUT(1); PUT(2); PUT(3)
			:: fails > 0 ->
				fails--; bad = 1;
				if /* a part of it may have come to be written */
				:: PUT(0); PUT(2)
				:: true
				fi
			fi;
			if
			:: gparts[me] == 0 || bad -> goto settle
			:: else
			fi
		}
		atomic {
			if
			:: !cancelled -> silent = 0; MIRROR(0, gvalue[me]); MIRROR(1, gvalue[me]); MIRROR(2, gvalue[me]); MIRROR(3, gvalue[me])
			:: fails > 0 || cancelled || silent ->
				fails = (fails && !silent -> fails - 1 : fails);
				MIRROR(0, GARBAGE); MIRROR(1, GARBAGE); MIRROR(2, GARBAGE); MIRROR(3, GARBAGE);
				targetBad = 1
			fi
		}
settle:
		/* The write is settled, and the guest has its answer. */
		atomic {
#ifdef MUT_MODE_NOW
			if
			:: gmode[me] == BACKGROUND && mode == BLOCKING -> writers--; gmode[me] = BYPASS
			:: else
			fi;
#endif
			if
			:: gmode[me] == BACKGROUND ->
				/* A job in sync stays so, unless something fails or the mode is changed (I3). */
				sync_holds = !SYNCED;
				assert(sync_holds);
				writers--;
				if
#ifdef MUT_BACK_FAILED
				:: bad -> skip
#endif
				:: !gvalue[me] && !bad && NOTHING_TO_DO(OUT(gmask[me])) -> skip
				:: else ->
#ifndef MUT_DIRTY_BEFORE
					D = D | OUT(gmask[me])
#endif
				fi
			:: gmode[me] == BLOCKING ->
#ifndef MUT_TOUCH_ONCE
				fresh = fresh | written[me];
#endif
				if
				:: bad ->
#ifndef MUT_SOURCE_FAILED
					D = D | OUT(gmask[me])
#endif
				:: !bad && targetBad ->
#ifndef MUT_TARGET_FAILED
					D = D | OUT(gtarget[me]);
#endif
					Z = Z & ~OUT(gtarget[me])
				:: else -> Z = Z | zeroed[me]
				fi;
				release(me)
			:: else
			fi;
			gmask[me] = 0; gvalue[me] = 0; gtarget[me] = 0; gparts[me] = 0; gmode[me] = 0;
			bad = 0; targetBad = 0;
			inFlight--
		}
	od
}

/* Flushes that guests ask for, and the one before the job is ready: at any time after the scan, but not while guests are
 * drained. Before, a guest's flush does not concern the target. */
proctype flusher() {
	bit ok;
end:
	do
	:: atomic { flushes > 0 && scanned == SIZE && !gate && !over -> flushes--; inFlight++ }
		flush(ok);
		atomic { ok = 0; inFlight-- }
	od
}

/* ---- The copy */

#ifdef MUT_COPY_BUSY
#define FREE(c) (!((held[2] | held[3]) & BYTES(c)))
#else
#define FREE(c) (!BUSY(c))
#endif

inline copyChunk(c, i) {
	/* What the source reads as is asked under the claim. */
#ifdef MUT_STATUS_EARLY
	zero = early[i];
#else
	atomic { zero = (src[i] == 0 && src[i + 1] == 0) }
#endif
	atomic {
		if
		:: zero && targetZero -> zero = 0; goto done
		:: zero && !targetZero -> fresh = fresh | c; written[me] = written[me] | c; zeroed[me] = zeroed[me] | c; goto write
		:: else
		fi
	}
#if TORN
	b0 = src[i];
	b1 = src[i + 1];
#endif
	atomic {
		if
		:: fails > 0 -> fails--; bad = 1; b0 = 0; b1 = 0; goto done
		:: true ->
#if !TORN
			b0 = src[i];
			b1 = src[i + 1]
#endif
		fi
	}
	atomic { Z = Z & ~c; fresh = fresh | c; written[me] = written[me] | c }
write:
	atomic {
		if
		:: !cancelled -> silent = 0; dst[i] = b0; dst[i + 1] = b1
		:: fails > 0 || cancelled || silent ->
			fails = (fails && !silent -> fails - 1 : fails);
			dst[i] = GARBAGE; dst[i + 1] = GARBAGE;
			targetBad = 1
		fi;
		b0 = 0; b1 = 0; zero = 0
	}
done:
	skip
}

proctype copy(byte me) {
	byte claim, b0, b1;
#ifdef MUT_STATUS_EARLY
	bit early[3];
#endif
	bit targetZero, zero, bad, targetBad;
end:
	do
#ifdef MUT_STATUS_EARLY
	:: atomic { copies && !cancelled && D -> early[0] = (src[0] == 0 && src[1] == 0); early[2] = (src[2] == 0 && src[3] == 0) }
end1:
		atomic {
#else
	:: atomic {
#endif
		copies && !cancelled && ((D & 1 && FREE(1)) || (D & 2 && FREE(2))) ->
		if
		:: D & 1 && FREE(1) -> claim = 1
		:: D & 2 && FREE(2) -> claim = 2
#if WIDE
		:: D == ALL && FREE(1) && FREE(2) && (Z == 0 || Z == ALL) -> claim = ALL
#endif
		fi;
#ifndef MUT_CLEAR_LATE
		D = D & ~claim;
#endif
		held[me] = BYTES(claim);
		targetZero = (Z & claim) != 0;
		copying++
		}
		if
		:: claim & 1 -> copyChunk(1, 0)
		:: else
		fi;
#if WIDE
		/* More data than was hoped: the second chunk is given back, and who waited for it alone goes on. */
		if
		:: claim == ALL ->
			atomic {
				claim = 1;
				held[me] = BYTES(1);
#ifndef MUT_GIVE_BACK
				D = D | 2;
#endif
				if
				:: waits[0] & (1 << me) && !(held[0] & BYTES(1)) -> wake1(0, me)
				:: else
				fi;
				if
				:: waits[1] & (1 << me) && !(held[1] & BYTES(1)) -> wake1(1, me)
				:: else
				fi
			}
		:: true
		fi;
#endif
		if
		:: claim & 2 && !bad && !targetBad -> copyChunk(2, 2)
		:: else
		fi;
		atomic {
#ifndef MUT_TOUCH_ONCE
			fresh = fresh | written[me];
#endif
#ifdef MUT_CLEAR_LATE
			D = D & ~claim;
#endif
			if
			:: bad || targetBad ->
#ifndef MUT_READ_FAILED
				D = D | claim;
#endif
				failed = 1
			:: else
			fi;
			if
			:: targetBad -> Z = Z & ~claim
			:: !targetBad && !bad -> Z = Z | zeroed[me]
			:: else
			fi;
			release(me);
			claim = 0; targetZero = 0; bad = 0; targetBad = 0;
			copying--
		}
	od
}

/* ---- The loop */

/* The whole target is made to read as zero. It takes no claims: nothing is scanned, so guests leave the target alone. */
inline zeroTarget(c, i) {
	do
	:: fresh = fresh | c;
		atomic {
			if
			:: !cancelled -> dst[i] = 0; dst[i + 1] = 0; break
			:: fails > 0 -> fails--; dst[i] = GARBAGE; dst[i + 1] = GARBAGE
			:: cancelled -> goto stop
			fi
		}
	od
}

/* One extent of the source is looked at, and then taken in; extents may end inside a chunk. */
inline scanOne() {
	atomic {
		data = src[scanned] != 0;
		n = 1;
		if
		:: scanned < SIZE - 1 && ((src[scanned + 1] != 0) == data) -> n = 2
		:: else
		fi
	}
	atomic {
		if
		:: data -> D = D | OUT(((1 << n) - 1) << scanned)
		:: else ->
#ifdef MUT_SCAN_CLEARS
			D = D & ~IN(((1 << n) - 1) << scanned)
#endif
		fi;
		scanned = scanned + n;
		data = 0; n = 0
	}
}

proctype loop() {
	bit ok, data;
	byte n;
#if START == PREZERO
	zeroTarget(1, 0);
	zeroTarget(2, 2);
#endif
#if START == DIRTY
	atomic { D = ALL; scanned = SIZE }
#else
	Z = ALL;
	do
	:: scanned < SIZE && !cancelled -> scanOne()
	:: scanned == SIZE || cancelled -> break
	od;
#endif
	copies = 1;
	/* The job is asked to complete, or cancelled, sooner or later. */
	do
	:: cancelled -> goto stop
	:: atomic {
		!cancelled ->
		/* What is dirty can only shrink from now on. */
		mode = BLOCKING; failed = 0; copies = 0
		}
#ifndef MUT_NO_DRAIN
		atomic { copying == 0 -> gate = 1 }
		atomic { inFlight == 0 || cancelled -> copies = 1 }
#else
		atomic { copying == 0 -> copies = 1 }
#endif
		atomic { copying == 0 && (D == 0 || failed || cancelled) -> copies = 0; ok = 0 }
		if
		:: failed || cancelled -> skip
		:: else ->
#ifdef MUT_NO_LAST_FLUSH
			ok = 1
#else
			flush(ok)
#endif
		fi;
		atomic {
			if
			:: ok && !failed && !cancelled ->
				/* The users of the source are given the target. */
				I7_holds = I7;
				assert(I7_holds);
				pivoted = 1;
				goto ended
			:: else -> ok = 0; gate = 0; copies = 1
			fi
		}
	od;
stop:
	/* Cancelled: the filter is taken out, and guests go on with the source. */
	copies = 0;
	atomic { copying == 0 -> stopped = 1; gate = 1 }
	inFlight == 0;
ended:
	atomic { D = 0; Z = 0; fresh = 0; ok = 0; over = 1; gate = 0 }
}

proctype operator() {
end:
	do
	:: atomic { switches > 0 && !over -> switches--; mode = 1 - mode }
	/* Somebody has waited for long enough. What is under way on the target is given up from now on, done or not. */
	:: atomic { silences > 0 && scanned == SIZE && !over -> silences--; silent = 1 }
#if CANCEL
	:: atomic { !cancelled && !pivoted -> cancelled = 1 }
#endif
	od
}

init {
	d_step {
		src[0] = 50; /* a chunk of data, with a hole in it, and one that is all hole */
#if START != ZERO
		dst[0] = 51; dst[2] = 51;
		lasting[0] = 51; lasting[2] = 51;
#endif
	}
	atomic {
		run guest(0);
		run guest(1);
		run copy(2);
#if WORKERS > 1
		run copy(3);
#endif
#if FLUSHES
		run flusher();
#endif
		run operator();
		run loop()
	}
}
