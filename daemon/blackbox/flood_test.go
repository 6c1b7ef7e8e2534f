// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A flood on other connections slows a guest, as the machine is shared, but starves it not. The figures are in the log.
func TestFloodStarvesNobody(t *testing.T) {
	const (
		span     = time.Second
		flooders = 4
		least    = 100 // requests in span, of many thousands: less is no share, whatever else the machine does
	)
	d := start(t)
	d.disks(64<<20, nil)
	g := d.guest("src")
	measure := func() (requests int, median, worst time.Duration) {
		var took []time.Duration
		p := make([]byte, 4096)
		for end := time.Now().Add(span); time.Now().Before(end); {
			began := time.Now()
			must(t, g.ReadAt(t.Context(), p, uint64(len(took)%1024)*4096))
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return len(took), took[len(took)/2], took[len(took)-1]
	}
	alone, median, worst := measure()
	t.Logf("alone: %d requests, median %v, worst %v", alone, median, worst)

	ctx, cancel := context.WithCancel(t.Context())
	var floods sync.WaitGroup
	defer floods.Wait()
	defer cancel()
	for name, flood := range map[string]func(){
		"NBD": func() {
			for range flooders {
				f := d.guest("src")
				floods.Go(func() {
					for p := make([]byte, 1<<20); f.ReadAt(ctx, p, 0) == nil; {
					}
				})
			}
		},
		"monitor": func() {
			c := d.dial("qmp")
			context.AfterFunc(ctx, func() { _ = c.Close() })
			floods.Go(func() { _, _ = io.Copy(io.Discard, c) })
			text := `{"execute": "qmp_capabilities"}` + strings.Repeat(`{"execute": "query-version"}`, 1000)
			floods.Go(func() {
				for {
					if _, err := io.WriteString(c, text); err != nil {
						return
					}
				}
			})
		},
	} {
		flood()
		beside, median, worst := measure()
		t.Logf("beside a flood more, on %s: %d requests, median %v, worst %v", name, beside, median, worst)
		if beside < least {
			t.Errorf("%d requests beside the flood, less than %d", beside, least)
		}
		if worst > 2*time.Second {
			t.Errorf("a request took %v", worst)
		}
	}
}
