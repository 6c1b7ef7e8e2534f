// SPDX-License-Identifier: Apache-2.0

package hosts

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	wireMTU = 9000
	// wireQueue is how many packets may be on the way in one direction; more are lost, as in a switch.
	wireQueue = 4096
)

// wire joins two hosts and does to packets what long and bad lines do.
type wire struct {
	delay, jitter time.Duration // of each packet, one way; order is kept
	loss          float64       // part of the packets that is lost
	silent        atomic.Bool   // all are lost
	lost          atomic.Int64
}

// connect puts the wire between two hosts.
func (w *wire) connect(t *testing.T, source, target *host, seed uint64) {
	t.Helper()
	a, b := openTUN(t, source, sourceAddress), openTUN(t, target, targetAddress)
	var carriers sync.WaitGroup
	carriers.Go(func() { w.carry(a, b, rand.New(rand.NewPCG(seed, 1))) })
	carriers.Go(func() { w.carry(b, a, rand.New(rand.NewPCG(seed, 2))) })
	t.Cleanup(func() {
		_, _ = a.Close(), b.Close()
		carriers.Wait()
	})
}

// openTUN makes a device whose packets can be read and written here.
func openTUN(t *testing.T, h *host, ip string) *os.File {
	t.Helper()
	fd := -1
	err := h.enter(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		request, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	})
	if fd < 0 {
		t.Skipf("no TUN devices here: %v", err)
	}
	f := os.NewFile(uintptr(fd), "tun")
	if err != nil {
		_ = f.Close()
		t.Skipf("no TUN devices here: %v", err)
	}
	h.run("ip", "link", "set", device, "mtu", fmt.Sprint(wireMTU))
	h.address(device, ip)
	return f
}

// packet is one on its way.
type packet struct {
	data []byte
	due  time.Time
}

// carry takes packets from one end to the other until the ends are closed.
func (w *wire) carry(from, to *os.File, random *rand.Rand) {
	queue := make(chan packet, wireQueue)
	var sender sync.WaitGroup
	sender.Go(func() {
		for p := range queue {
			time.Sleep(time.Until(p.due)) // what a long line does
			_, _ = to.Write(p.data)       // a packet that is not taken is lost
		}
	})
	defer sender.Wait()
	defer close(queue)
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		p := packet{append([]byte(nil), buffer[:n]...), time.Now().Add(w.delay)}
		if w.jitter > 0 {
			p.due = p.due.Add(time.Duration(random.Int64N(int64(w.jitter))))
		}
		if w.silent.Load() || random.Float64() < w.loss {
			w.lost.Add(1)
			continue
		}
		select {
		case queue <- p:
		default:
			w.lost.Add(1)
		}
	}
}
