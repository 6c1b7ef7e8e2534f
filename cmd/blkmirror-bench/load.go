// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/nbdload"
	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
)

// chooseLoad decides what makes a guest's requests, for all contenders alike.
func (b *bench) chooseLoad(ctx context.Context) error {
	if b.load == loadOwn {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := output(ctx, "fio", "--enghelp")
	has := err == nil && strings.Contains(out, "\tnbd\n")
	switch {
	case has:
		b.load = loadFio
	case b.load == loadFio:
		return errors.New("there is no fio with the nbd engine")
	default:
		b.load = loadOwn
	}
	return nil
}

// guestLoad is what a guest does: reads or writes of 4 KiB at random places.
type guestLoad struct {
	write              bool
	depth, connections int
}

// guest puts a load on an export for the time in the settings, and measures the server meanwhile.
func (b *bench) guest(ctx context.Context, p *process, socket string, g guestLoad, s result.Sample) error {
	m, err := b.meter(ctx, p)
	if err != nil {
		return err
	}
	make := b.ownLoad
	if b.load == loadFio {
		make = b.fioLoad
	}
	r, err := make(ctx, socket, g)
	_, used, err2 := m.stop(s)
	if err := errors.Join(err, err2); err != nil {
		select {
		case <-p.exited:
			return errors.Join(err, p.died())
		default:
			return err
		}
	}
	if r.Requests == 0 {
		return errors.New("the guest got nothing done")
	}
	// The load's own time: starting fio takes a while, too.
	putTimes(s, r.Wall, used, float64(r.Requests))
	s[p50.Name], s[p99.Name] = float64(r.P50)/1e3, float64(r.P99)/1e3
	return nil
}

func (b *bench) ownLoad(ctx context.Context, socket string, g guestLoad) (nbdload.Result, error) {
	load := nbdload.Load{Command: nbd.CmdRead, Block: 4096, Random: true, Depth: g.depth, Connections: g.connections, Time: b.loadTime, Seed: 1}
	if g.write {
		load.Command = nbd.CmdWrite
	}
	return nbdload.Run(ctx, socket, exportName, load)
}

func (b *bench) fioLoad(ctx context.Context, socket string, g guestLoad) (nbdload.Result, error) {
	rw := "randread"
	if g.write {
		rw = "randwrite"
	}
	text, err := output(ctx, "fio", "--name=guest", "--ioengine=nbd", "--uri=nbd+unix:///"+exportName+"?socket="+socket, "--rw="+rw, "--bs=4k",
		fmt.Sprintf("--iodepth=%d", g.depth), fmt.Sprintf("--numjobs=%d", g.connections), "--group_reporting", "--norandommap", "--clat_percentiles=0", "--lat_percentiles=1",
		"--time_based", fmt.Sprintf("--runtime=%dms", b.loadTime.Milliseconds()), "--output-format=json", "--eta=never")
	if err != nil {
		return nbdload.Result{}, err
	}
	return parseFio(text, g.write)
}

// parseFio reads fio's report, which may come after other lines. The latency is that of the whole request: how much of it fio
// calls submission, and how much completion, depends on when the answer comes.
func parseFio(text string, write bool) (nbdload.Result, error) {
	type direction struct {
		TotalIOs int64   `json:"total_ios"`
		IOPS     float64 `json:"iops"`
		Latency  struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"lat_ns"`
	}
	var report struct {
		Jobs []struct {
			Error int       `json:"error"`
			Read  direction `json:"read"`
			Write direction `json:"write"`
		} `json:"jobs"`
	}
	at := strings.Index(text, "{")
	if at < 0 {
		return nbdload.Result{}, errors.New("fio says nothing")
	}
	if err := json.NewDecoder(strings.NewReader(text[at:])).Decode(&report); err != nil {
		return nbdload.Result{}, fmt.Errorf("fio: %w", err)
	}
	if len(report.Jobs) != 1 {
		return nbdload.Result{}, fmt.Errorf("fio reports %d groups of jobs", len(report.Jobs))
	}
	j := report.Jobs[0]
	if j.Error != 0 {
		return nbdload.Result{}, fmt.Errorf("fio: error %d", j.Error)
	}
	d := j.Read
	if write {
		d = j.Write
	}
	if d.IOPS <= 0 {
		return nbdload.Result{}, errors.New("fio got nothing done")
	}
	return nbdload.Result{Requests: d.TotalIOs, Wall: time.Duration(float64(d.TotalIOs) / d.IOPS * float64(time.Second)),
		P50: time.Duration(d.Latency.Percentile["50.000000"]), P99: time.Duration(d.Latency.Percentile["99.000000"])}, nil
}
