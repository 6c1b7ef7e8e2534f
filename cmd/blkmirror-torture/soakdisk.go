// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// one is one mirror of a disk, from its beginning to its end.
func (k *soak) one(ctx context.Context, d *soakDisk) error {
	id, random := d.name+"-mirror", d.random
	target, fault := d.target, ""
	if d.source == target {
		target = d.name
	}
	ending := pick(random, "complete", "complete", "complete", "cancel", "force", "force early", "fail", "resume")
	if d.remote && ending != "complete" {
		target = d.name + "-far" // the guests stay
	}
	if ending == "fail" || ending == "resume" {
		// A fault node between the job and its target, for this time only.
		d.rules++
		fault = fmt.Sprintf("%s-fault%d", d.name, d.rules)
		if err := k.daemon.do(ctx, "blockdev-add", args{"driver": "blkdebug", "node-name": fault, "image": target,
			"inject-error": rules(random, soakSize, "write")}, nil); err != nil {
			return err
		}
		target = fault
	}
	completed := k.daemon.seen("BLOCK_JOB_COMPLETED "+id) + k.daemon.seen("BLOCK_JOB_CANCELLED "+id)
	policy := map[string]string{"fail": "report"}[ending]
	if policy == "" {
		policy = "stop"
	}
	if err := k.daemon.do(ctx, "blockdev-mirror", args{"job-id": id, "device": d.source, "target": target, "sync": "full",
		"copy-mode":       pick(random, "background", "write-blocking", "auto"),
		"speed":           int64(soakSize / between(random, 50*time.Millisecond, 400*time.Millisecond).Seconds()),
		"on-target-error": policy, "on-source-error": "report"}, nil); err != nil {
		return err
	}
	if err := k.drive(ctx, d, id, ending, random); err != nil {
		return fmt.Errorf("%s: %w", ending, err)
	}
	if err := until(ctx, convergeLimit, "the end of the job is told", func() (bool, error) {
		return k.daemon.seen("BLOCK_JOB_COMPLETED "+id)+k.daemon.seen("BLOCK_JOB_CANCELLED "+id) > completed &&
			k.daemon.said("JOB_STATUS_CHANGE "+id) == "null", nil
	}); err != nil {
		return err
	}
	k.counts.add("mirrors: "+ending, 1)
	node, err := k.daemon.exported(ctx, d.name)
	if err != nil {
		return err
	}
	why := k.daemon.said("BLOCK_JOB_COMPLETED " + id)
	if ending == "complete" && (node != target || why != "") || ending != "complete" && node != d.source {
		return fmt.Errorf("%s of %s to %s ended with '%s', and guests use %s", ending, d.source, target, why, node)
	}
	d.source = node
	if fault != "" {
		return k.daemon.do(ctx, "blockdev-del", args{"node-name": fault}, nil)
	}
	return nil
}

// drive brings a mirror to its end.
func (k *soak) drive(ctx context.Context, d *soakDisk, id, ending string, random *rand.Rand) error {
	pause := between(random, time.Millisecond, 200*time.Millisecond)
	if ending == "force early" {
		return errors.Join(sleep(ctx, pause), k.cancel(ctx, id, true))
	}
	began, helped, finished := time.Now(), false, false
	return until(ctx, convergeLimit, "the mirror ends", func() (bool, error) {
		if err := d.guest.error(); err != nil {
			return false, err
		}
		j, err := k.daemon.jobNamed(ctx, id)
		switch {
		case err != nil || j == nil:
			return j == nil, err
		case j.Paused && j.IOStatus != "ok":
			k.counts.add("mirrors resumed after an error", 1)
			_ = k.daemon.do(ctx, "job-resume", args{"id": id}, nil)
		case j.Status != "ready" && time.Since(began) > patience && !helped:
			helped = true
			_ = k.daemon.do(ctx, "block-job-set-speed", args{"device": id, "speed": 0}, nil)
			_ = k.daemon.do(ctx, "block-job-change", args{"id": id, "type": "mirror", "copy-mode": "write-blocking"}, nil)
		case j.Status == "ready" && !finished:
			finished = true
			if err := sleep(ctx, pause/4); err != nil {
				return false, err
			}
			switch ending {
			case "complete":
				return false, k.daemon.do(ctx, "job-complete", args{"id": id}, nil)
			case "cancel":
				return false, k.cancel(ctx, id, false)
			default: // the errors that were to come did not
				_ = k.cancel(ctx, id, true)
			}
		}
		return false, nil
	})
}

// cancel cancels a mirror.
func (k *soak) cancel(ctx context.Context, id string, force bool) error {
	err := k.daemon.do(ctx, "block-job-cancel", args{"device": id, "force": force}, nil)
	if j, e := k.daemon.jobNamed(ctx, id); e == nil && j == nil {
		return nil // it had ended
	}
	return err
}
