// SPDX-License-Identifier: Apache-2.0

package metamorphic

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

var (
	seedFlag   = flag.Uint64("metamorphic.seed", 1, "the first history")
	seedsFlag  = flag.Int("metamorphic.seeds", 2, "how many histories")
	stepsFlag  = flag.Int("metamorphic.steps", 300, "steps of the guest in each")
	setsFlag   = flag.Int("metamorphic.sets", 10, "under how many sets of options each is run")
	setFlag    = flag.Int("metamorphic.set", -1, "run under this set alone")
	shrinkFlag = flag.Bool("metamorphic.shrink", false, "after a failure, look for the shortest history that fails")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestHistories is the test of this package.
func TestHistories(t *testing.T) {
	for seed := *seedFlag; seed < *seedFlag+uint64(*seedsFlag); seed++ {
		h := newHistory(seed, *stepsFlag)
		for i := range *setsFlag {
			if *setFlag >= 0 {
				i = *setFlag
			}
			s := newSet(seed, i)
			t.Run(fmt.Sprintf("seed=%d/set=%d", seed, i), func(t *testing.T) {
				t.Parallel()
				one(t, seed, i, h, s)
			})
			if *setFlag >= 0 {
				break
			}
		}
	}
}

func one(t *testing.T, seed uint64, i int, h history, s set) {
	err := attempt(t, h, s)
	if err == nil {
		return
	}
	t.Errorf("%v\nunder %v\nagain: go test ./daemon/metamorphic -metamorphic.seed=%d -metamorphic.seeds=1 -metamorphic.set=%d "+
		"-metamorphic.steps=%d [-metamorphic.shrink]", err, s, seed, i, *stepsFlag)
	if *shrinkFlag {
		short, err := shrink(t, h, s, err)
		t.Logf("the shortest history found to fail, with %v:\n%v", err, short)
	}
}

// attempt plays a history once. Sockets need a short path.
func attempt(t *testing.T, h history, s set) error {
	dir, err := os.MkdirTemp("/tmp", "mm-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	return play(context.WithoutCancel(t.Context()), dir, h, s)
}

// shrink leaves out parts of a history, ever smaller ones, as long as it fails without them. A failure that depends on time
// gets three tries.
func shrink(t *testing.T, h history, s set, failure error) (history, error) {
	for part := len(h) / 2; part > 0; part /= 2 {
		for from := 0; from+part <= len(h); {
			without := append(append(history{}, h[:from]...), h[from+part:]...)
			var err error
			for range 3 {
				if err = attempt(t, without, s); err != nil {
					break
				}
			}
			if err != nil {
				h, failure = without, err
			} else {
				from += part
			}
		}
	}
	return h, failure
}
