// SPDX-License-Identifier: Apache-2.0

package job

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// reach brings a job into a state, and says how to let it end.
var reach = map[Status]func(t *testing.T) (*Job, func()){
	Running: func(t *testing.T) (*Job, func()) {
		j, _, _ := start(t, &body{busy: func(ctx context.Context, j *Job) error { <-ctx.Done(); return context.Cause(ctx) }}, Config{})
		return j, func() {}
	},
	Paused: func(t *testing.T) (*Job, func()) {
		j, _, _ := start(t, &body{busy: func(ctx context.Context, j *Job) error {
			<-j.Wake()
			return j.Checkpoint(ctx)
		}}, Config{})
		try(t, j.Pause(nil))
		return j, func() {}
	},
	Ready: func(t *testing.T) (*Job, func()) {
		j, _, _ := start(t, &body{}, Config{AutoFinalize: true})
		return j, func() {}
	},
	Standby: func(t *testing.T) (*Job, func()) {
		j, _, _ := start(t, &body{}, Config{AutoFinalize: true})
		synctest.Wait()
		try(t, j.Pause(nil))
		return j, func() {}
	},
	Pending: func(t *testing.T) (*Job, func()) {
		j, _, _ := start(t, &body{}, Config{})
		synctest.Wait()
		try(t, j.Complete(nil))
		return j, func() {}
	},
	Concluded: func(t *testing.T) (*Job, func()) {
		j, _, _ := start(t, &body{}, Config{})
		synctest.Wait()
		try(t, j.Cancel(nil))
		return j, func() {}
	},
}

func try(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Every verb in every state that lasts.
func TestVerbsInStates(t *testing.T) {
	verbs := map[Verb]func(j *Job) error{
		VerbCancel:   func(j *Job) error { return j.Cancel(nil) },
		VerbPause:    func(j *Job) error { return j.Pause(nil) },
		VerbResume:   func(j *Job) error { return j.Resume(nil) },
		VerbSetSpeed: func(j *Job) error { return j.SetSpeed(5) },
		VerbChange:   func(j *Job) error { return j.AllowChange() },
		VerbComplete: func(j *Job) error { return j.Complete(nil) },
		VerbFinalize: func(j *Job) error { return j.Finalize(nil) },
		VerbDismiss:  func(j *Job) error { return j.Dismiss() },
	}
	works := map[Status][]Verb{
		Running:   {VerbCancel, VerbPause, VerbSetSpeed, VerbChange},
		Paused:    {VerbCancel, VerbResume, VerbSetSpeed, VerbChange},
		Ready:     {VerbCancel, VerbPause, VerbSetSpeed, VerbChange, VerbComplete},
		Standby:   {VerbCancel, VerbResume, VerbSetSpeed, VerbChange, VerbComplete},
		Pending:   {VerbCancel, VerbFinalize},
		Concluded: {VerbDismiss},
	}
	special := map[string]string{
		"pause paused":   "Job is already paused",
		"pause standby":  "Job is already paused",
		"resume running": "Can't resume a job that was not paused", "resume ready": "Can't resume a job that was not paused",
		"resume pending": "Can't resume a job that was not paused", "resume concluded": "Can't resume a job that was not paused",
	}
	for status, to := range reach {
		for v, do := range verbs {
			t.Run(fmt.Sprintf("%s %s", v, status), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					j, _ := to(t)
					synctest.Wait()
					if got := j.Info().Status; got != status {
						t.Fatalf("the job is %s", got)
					}
					err := do(j)
					want := special[fmt.Sprintf("%s %s", v, status)]
					if want == "" {
						want = fmt.Sprintf("Job 'j' in state '%s' cannot accept command verb '%s'", status, v)
					}
					switch {
					case slices.Contains(works[status], v) && err != nil:
						t.Errorf("refused: %v", err)
					case !slices.Contains(works[status], v) && (err == nil || err.Error() != want):
						t.Errorf("answered %v, want %q", err, want)
					}
					_ = j.Cancel(nil)
					<-j.Done()
				})
			})
		}
	}
}

func TestLives(t *testing.T) {
	for _, c := range []struct {
		name   string
		body   body
		config Config
		do     func(t *testing.T, j *Job)
		want   string
		soft   bool
	}{
		{name: "complete", config: Config{AutoFinalize: true, AutoDismiss: true}, do: func(t *testing.T, j *Job) { try(t, j.Complete(nil)) },
			want: "created running ready READY waiting pending COMPLETED concluded null"},
		{name: "soft cancel", config: Config{AutoFinalize: true, AutoDismiss: true}, do: func(t *testing.T, j *Job) { try(t, j.SoftCancel(false, nil)) },
			want: "created running ready READY waiting pending COMPLETED concluded null", soft: true},
		{name: "forced cancel", config: Config{AutoFinalize: true, AutoDismiss: true}, do: func(t *testing.T, j *Job) { try(t, j.SoftCancel(true, nil)) },
			want: "created running ready READY aborting CANCELLED concluded null"},
		{name: "by hand", do: func(t *testing.T, j *Job) {
			try(t, j.Complete(nil))
			synctest.Wait()
			for _, verb := range []error{j.Pause(nil), j.SetSpeed(1), j.Complete(nil), j.Dismiss()} {
				if verb == nil {
					t.Error("a pending job accepted a verb")
				}
			}
			if i := j.Info(); !i.Paused || i.Busy {
				t.Errorf("pending: %+v", i)
			}
			try(t, j.Finalize(nil))
			synctest.Wait()
			try(t, j.Dismiss())
		}, want: "created running ready READY waiting pending PENDING COMPLETED concluded null"},
		{name: "cancel in pending", config: Config{AutoDismiss: true}, do: func(t *testing.T, j *Job) {
			try(t, j.Complete(nil))
			synctest.Wait()
			try(t, j.SoftCancel(false, nil))
		}, want: "created running ready READY waiting pending PENDING aborting CANCELLED concluded null"},
		{name: "pause, complete, resume", config: Config{AutoFinalize: true, AutoDismiss: true}, do: func(t *testing.T, j *Job) {
			try(t, j.Pause(nil))
			synctest.Wait()
			if j.SoftCancel(false, nil) == nil {
				t.Error("a soft cancel was accepted in standby")
			}
			try(t, j.Complete(nil))
			try(t, j.Complete(nil))
			synctest.Wait()
			try(t, j.Resume(nil))
		}, want: "created running ready READY standby ready waiting pending COMPLETED concluded null"},
		{name: "cancel in standby", config: Config{AutoDismiss: true}, do: func(t *testing.T, j *Job) {
			try(t, j.Pause(nil))
			synctest.Wait()
			try(t, j.Cancel(nil))
		}, want: "created running ready READY standby ready aborting CANCELLED concluded null"},
		{name: "failure when ready", body: body{err: errors.New("broken")}, config: Config{AutoDismiss: true}, do: func(*testing.T, *Job) {},
			want: "created running ready READY aborting COMPLETED(broken) concluded null"},
		{name: "failure before", body: body{busy: func(context.Context, *Job) error { return errors.New("broken") }}, config: Config{AutoDismiss: true},
			do: func(*testing.T, *Job) {}, want: "created running aborting COMPLETED(broken) concluded null"},
		{name: "stopped by an error", body: body{busy: func(ctx context.Context, j *Job) error {
			j.Report(Failure{Err: syscall.ENOSPC, Action: PolicyENOSPC.Decide(syscall.ENOSPC)})
			if err := j.Checkpoint(ctx); err != nil {
				return err
			}
			if !j.WasStopped() || j.WasStopped() {
				return errors.New("stopped once was not told once")
			}
			return nil
		}}, config: Config{AutoDismiss: true, AutoFinalize: true}, do: func(t *testing.T, j *Job) {
			if i := j.Info(); i.IOStatus != IONoSpace || i.Status != Paused {
				t.Errorf("stopped: %+v", i)
			}
			try(t, j.Resume(nil))
			synctest.Wait()
			if i := j.Info(); i.IOStatus != IOOK {
				t.Errorf("resumed: %+v", i)
			}
			try(t, j.Complete(nil))
		}, want: "created running ERROR:stop paused running ready READY waiting pending COMPLETED concluded null"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j, g, r := start(t, &c.body, c.config)
				synctest.Wait()
				c.do(t, j)
				<-j.Done()
				synctest.Wait()
				if got := r.String(); got != c.want {
					t.Errorf("the life was\n %s, want\n %s", got, c.want)
				}
				if len(g.Jobs()) != 0 || c.body.cleaned != 1 || c.body.soft != c.soft {
					t.Errorf("%d jobs left, cleaned %d times, soft %v", len(g.Jobs()), c.body.cleaned, c.body.soft)
				}
				if (c.body.failed != nil) != (j.Err() != nil) {
					t.Errorf("Clean was told %v, the error is %v", c.body.failed, j.Err())
				}
			})
		})
	}
}

// Effects wait for the reply, decisions do not.
func TestAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, _, r := start(t, &body{}, Config{AutoFinalize: true, AutoDismiss: true})
		synctest.Wait()
		var effect func()
		try(t, j.Complete(func(f func()) { effect = f }))
		synctest.Wait()
		if got := r.String(); got != "created running ready READY" {
			t.Errorf("before the reply: %s", got)
		}
		if j.Complete(nil) == nil {
			t.Error("complete was accepted twice")
		}
		effect()
		<-j.Done()
		if j.Cancel(nil) == nil {
			t.Error("a job that is over was cancelled")
		}
	})
}

// A cancel wins or loses against the commit; there is no third way.
func TestCancelAgainstCommit(t *testing.T) {
	won := map[string]int{}
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			b := &body{}
			j, _, rec := start(t, b, Config{AutoFinalize: true, AutoDismiss: true})
			synctest.Wait()
			var wg sync.WaitGroup
			for _, f := range []func(){func() { _ = j.Complete(nil) }, func() { _ = j.Cancel(nil) }, func() { _ = j.Pause(nil) }, func() { _ = j.Resume(nil) }} {
				d := time.Duration(r.IntN(2))
				wg.Go(func() {
					time.Sleep(d)
					f()
				})
			}
			wg.Wait()
			for range 5 {
				_ = j.Resume(nil)
				synctest.Wait()
			}
			_ = j.Cancel(nil)
			<-j.Done()
			synctest.Wait()
			life := rec.String()
			cancelled := strings.Contains(life, "CANCELLED")
			if cancelled == strings.Contains(life, "COMPLETED") || cancelled != errors.Is(j.Err(), ErrCancelled) ||
				cancelled != (b.failed != nil) {
				t.Errorf("seed %d: %s, error %v, Clean was told %v", seed, life, j.Err(), b.failed)
			}
			won[fmt.Sprint(cancelled)]++
		})
	}
	if len(won) != 2 {
		t.Logf("one-sided: %v", won)
	}
}

// Random verbs at any time: whatever was refused, the life follows the table of transitions (or the job panics), and ends.
func TestVerbsAtRandom(t *testing.T) {
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			b := &body{busy: func(ctx context.Context, j *Job) error {
				for range 3 {
					time.Sleep(time.Millisecond)
					if err := j.Checkpoint(ctx); err != nil {
						return err
					}
				}
				return nil
			}}
			j, g, rec := start(t, b, Config{AutoFinalize: r.IntN(2) == 0, AutoDismiss: true})
			var wg sync.WaitGroup
			for n := range 3 {
				r := rand.New(rand.NewPCG(seed, 10+uint64(n)))
				wg.Go(func() {
					for range 20 {
						var after After
						if r.IntN(2) == 0 {
							after = func(f func()) {
								d := time.Duration(r.IntN(2_000_000))
								wg.Go(func() {
									time.Sleep(d)
									f()
								})
							}
						}
						switch r.IntN(30) {
						case 0:
							_ = j.Cancel(after)
						case 1:
							_ = j.Complete(after)
						case 2:
							_ = j.SoftCancel(false, after)
						case 3, 4:
							_ = j.Finalize(after)
						case 5, 6, 7, 8, 9, 10, 11, 12:
							_ = j.Pause(after)
						case 13, 14:
							_ = j.SetSpeed(int64(r.IntN(9) - 1))
						default:
							_ = j.Resume(after)
						}
						time.Sleep(time.Duration(r.IntN(500_000)))
					}
				})
			}
			wg.Wait()
			for range 10 {
				_ = j.Resume(nil)
				time.Sleep(time.Millisecond)
			}
			_ = j.Complete(nil)
			time.Sleep(time.Millisecond)
			_ = j.Finalize(nil)
			time.Sleep(time.Millisecond)
			if !strings.HasSuffix(rec.String(), "concluded null") {
				t.Errorf("seed %d: not over: %s %+v", seed, rec.String(), j.Info())
				_ = j.Cancel(nil)
				<-j.Done()
			}
			synctest.Wait()
			if len(g.Jobs()) != 0 {
				t.Error("the job is still listed")
			}
		})
	}
}

func TestRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewRegistry(&recorder{})
		for _, id := range []string{"", "1a", "a b", "ä"} {
			if g.CheckID(id) == nil {
				t.Errorf("%q was accepted", id)
			}
		}
		add := func(id string) *Job {
			j, err := g.Add(Config{ID: id, Body: &body{}, BlockJob: id != "plain"})
			try(t, err)
			return j
		}
		a, b := add("a"), add("plain")
		if _, err := g.Add(Config{ID: "a", Body: &body{}}); err == nil || err.Error() != "Job ID 'a' already in use" {
			t.Errorf("a second 'a': %v", err)
		}
		if _, err := g.Add(Config{ID: "c", Speed: -1, Body: &body{}}); err == nil {
			t.Error("a negative speed was accepted")
		}
		if _, err := g.FindBlockJob("plain"); err == nil {
			t.Error("a job that is no block job was found as one")
		}
		if _, err := g.Find("c"); err == nil || err.Error() != "Job not found" {
			t.Errorf("found 'c': %v", err)
		}
		b.Abandon()
		if jobs := g.Jobs(); len(jobs) != 1 || jobs[0] != a {
			t.Errorf("jobs: %v", jobs)
		}
		a.Start(nil)
		synctest.Wait()
		try(t, g.CancelAll(context.Background()))
		if a.Info().Status != Concluded || !errors.Is(a.Err(), ErrCancelled) {
			t.Errorf("after CancelAll: %+v", a.Info())
		}
	})
}

// An id is given once, however many ask for it at the same time.
func TestRegistryGivesAnIDOnce(t *testing.T) {
	for range 200 {
		g := NewRegistry(&recorder{})
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for range 8 {
			wg.Go(func() {
				<-begin
				_, _ = g.Add(Config{ID: "a", Body: &body{}})
			})
		}
		close(begin)
		wg.Wait()
		if n := len(g.Jobs()); n != 1 {
			t.Fatalf("%d jobs have the same id", n)
		}
	}
}

func TestPolicies(t *testing.T) {
	for _, c := range []struct {
		p         Policy
		io, space Action
	}{{PolicyReport, ActionReport, ActionReport}, {PolicyIgnore, ActionIgnore, ActionIgnore}, {PolicyStop, ActionStop, ActionStop},
		{PolicyENOSPC, ActionReport, ActionStop}} {
		if io, space := c.p.Decide(syscall.EIO), c.p.Decide(syscall.ENOSPC); io != c.io || space != c.space {
			t.Errorf("policy %d: %s, %s", c.p, io, space)
		}
	}
}

func TestProgress(t *testing.T) {
	var p Progress
	p.SetRemaining(10)
	p.AddRemaining(5)
	p.Done(4)
	if c, total := p.Read(); c != 4 || total != 15 {
		t.Error(c, total)
	}
	p.Done(20)
	if c, total := p.Read(); c != 24 || total != 24 {
		t.Error(c, total)
	}
}

// Every state can be left but the last, and every transition leads somewhere.
func TestTransitions(t *testing.T) {
	for s := range numStatus {
		if len(transitions[s]) == 0 && s != Null {
			t.Errorf("%s cannot be left", s)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("an illegal transition went through")
		}
	}()
	j := &Job{registry: NewRegistry(&recorder{})}
	j.moveLocked(Concluded)
}

// What a job cannot give up is told, whatever else went wrong.
func TestFailureToCleanUpIsTold(t *testing.T) {
	b := &body{err: errors.New("the disk broke"), unclean: errors.New("the filter stays")}
	j, _, _ := start(t, b, Config{ID: "j", Type: "mirror", BlockJob: true})
	<-j.Done()
	if text := j.Info().Error; !strings.Contains(text, "the disk broke") || !strings.Contains(text, "the filter stays") {
		t.Errorf("the job's error is %q", text)
	}
}

// What was asked of a job is what one begins with that goes on in its place; it is ready again before it completes.
func TestWanted(t *testing.T) {
	for _, c := range []struct {
		name string
		ask  func(j *Job) error
		want Wanted
	}{
		{"nothing", func(*Job) error { return nil }, Wanted{}},
		{"complete", func(j *Job) error { return j.Complete(func(func()) {}) }, Wanted{Complete: true}},
		{"softly", func(j *Job) error { return j.SoftCancel(false, func(func()) {}) }, Wanted{Complete: true, Softly: true}},
		{"pause", func(j *Job) error { return j.Pause(nil) }, Wanted{Paused: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j, _, _ := start(t, &body{}, Config{AutoFinalize: true})
				synctest.Wait()
				was := j.Wanted()
				try(t, c.ask(j))
				if got := j.Wanted(); got != c.want {
					t.Errorf("%+v is wanted", got)
				}
				if !c.want.Paused {
					j.TakeBack(was)
					if got := j.Wanted(); got != was {
						t.Errorf("%+v is wanted after it was taken back", got)
					}
				}
				_ = j.Cancel(nil)
				<-j.Done()
				again, _, log := start(t, &body{}, Config{AutoFinalize: true, Wanted: c.want})
				synctest.Wait()
				if got := again.Wanted(); got != c.want {
					t.Errorf("%+v is wanted of the next one", got)
				}
				select {
				case <-again.Done():
					if !c.want.Complete || !strings.Contains(log.String(), "READY") {
						t.Errorf("it ended: %s", log)
					}
				default:
					if c.want.Complete {
						t.Error("it did not end")
					}
					_ = again.Cancel(nil)
					<-again.Done()
				}
			})
		})
	}
}
