// SPDX-License-Identifier: Apache-2.0

package mirror

import "testing"

// The kernel is not asked again once it said never, or did not copy often enough, whatever comes of requests that were under way.
func TestOffloadStaysOff(t *testing.T) {
	never := offloading{}
	never.missed(true)
	never.missed(false)
	if !never.off {
		t.Error("the kernel is asked again after it said never")
	}
	often := offloading{clones: true}
	for i := range maxMisses + 3 {
		often.missed(false)
		if often.off != (i+1 >= maxMisses) || often.clones {
			t.Errorf("after %d misses: %+v", i+1, often)
		}
	}
}
