// SPDX-License-Identifier: Apache-2.0

package images

import (
	"fmt"
	"testing"
)

// TestKill: a daemon is killed again and again while a guest writes. Whatever the guest had flushed is there, and the image has
// leaks at most. An orderly stop leaves none of those that it made itself.
func TestKill(t *testing.T) {
	rounds := 2
	if interop() {
		rounds = 10
	}
	kinds := []args{
		{},
		{"cluster-size": 512},
		{"lazy-refcounts": true, "cluster-size": 4096},
		{"extended-l2": true, "refcount-bits": 64},
		{"version": "v2", "cluster-size": 2048},
		{"data-file": true, "cluster-size": 4096},
	}
	if !interop() {
		kinds = kinds[:3]
	}
	for _, options := range kinds {
		t.Run(fmt.Sprint(options), func(t *testing.T) {
			random := dice(t)
			dir := folder(t)
			d := start(t, dir)
			const size = 24*mib + 5*sector
			options["size"] = size
			d.create("image", options)
			g := newGuest(t, size)
			for range rounds {
				d.qcow2("image", nil)
				d.export("image")
				g.begin(d, "image")
				g.until(200 + random.Int64N(1500))
				d.kill()
				g.stop()
				g.ended.Wait()
				g.failed.Store(nil)
				left := convert(t, "qcow2", d.path("image"))
				g.take("after a kill", left, false)
				recoverable(t, d.path("image"), options["lazy-refcounts"] == true, left)
				d = start(t, dir)
			}
			d.qcow2("image", nil)
			d.export("image")
			g.begin(d, "image")
			g.until(300)
			g.end()
			disk := d.read("image")
			g.take("at the end", disk, true)
			d.stop()
			inOrder(t, d.path("image"), true) // leaks of those that were killed stay
			holds(t, d.path("image"), disk)
			run(t, "qemu-img", "check", "-q", "-r", "leaks", d.path("image"))
			inOrder(t, d.path("image"), false)
		})
	}
}

// recoverable expects an image to have leaks at most, or, if refcounts were put off, to be one that qemu-img repairs without loss.
func recoverable(t *testing.T, path string, lazy bool, content []byte) {
	t.Helper()
	if !lazy {
		inOrder(t, path, true)
		return
	}
	run(t, "cp", path, path+".copy")
	run(t, "qemu-img", "check", "-q", "-r", "all", path+".copy")
	inOrder(t, path+".copy", false)
	holds(t, path+".copy", content)
}

// TestOrderlyStop: a daemon that is told to end while guests write leaves an image without leaks that holds all that it answered.
func TestOrderlyStop(t *testing.T) {
	for _, options := range []args{{"cluster-size": 1024}, {"lazy-refcounts": true}, {"extended-l2": true}} {
		t.Run(fmt.Sprint(options), func(t *testing.T) {
			d := start(t, folder(t))
			const size = 16 * mib
			options["size"] = size
			d.create("image", options)
			d.qcow2("image", nil)
			d.export("image")
			g := newGuest(t, size)
			g.begin(d, "image")
			g.until(500)
			d.stop()
			g.stop()
			g.ended.Wait()
			inOrder(t, d.path("image"), false)
			g.take("after a stop", convert(t, "qcow2", d.path("image")), false)
		})
	}
}
