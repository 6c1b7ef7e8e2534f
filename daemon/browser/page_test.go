// SPDX-License-Identifier: Apache-2.0

package browser

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

const mib = 1 << 20

// underWay has a mirror of a thin disk under way, with a guest that writes.
func underWay(t *testing.T, options ...string) *daemon {
	t.Helper()
	d := start(t, options...)
	const size = 2048 * mib
	d.disk("disk", size, 64*mib, 90*mib, 300*mib, 24*mib, 500*mib, 150*mib, 1000*mib, 60*mib, 1500*mib, 20*mib)
	d.disk("copy", size)
	d.do("block-export-add", args{"type": "nbd", "id": "vm1", "node-name": "disk", "name": "disk", "writable": true})
	d.guest("disk", size, 25*time.Millisecond)
	d.do("blockdev-mirror", args{"job-id": "move", "device": "disk", "target": "copy", "sync": "full", "speed": 12 * mib,
		"copy-mode": "background", "filter-node-name": "move-filter", "auto-dismiss": false})
	return d
}

func TestPage(t *testing.T) {
	needChromium(t)
	d := underWay(t, "--web-control", "--web-token", "token")
	token, err := os.ReadFile(d.path("token"))
	must(t, err)
	b := open(t, d, 1280, 1000)
	b.prefer("light")

	// The job, the map, the graph, the export and the events are there.
	b.until("the job is shown", `document.querySelector('[data-job=move] .badge')?.textContent === 'running'`)
	b.until("the map is drawn", `document.querySelector('#map-canvas').dataset.cells > 100`)
	contains(t, b.text("[data-job=move] .way"), "disk → copy")
	contains(t, b.text("#graph-box"), "move-filter", "disk-file", "copy-file", "vm1", "target", "backing")
	contains(t, b.text("#export-list"), "vm1", "move-filter", "1 on the local socket")
	contains(t, b.text("#event-list"), "JOB_STATUS_CHANGE")
	contains(t, b.text("#map-range"), "whole disk, 2.00 GiB")
	b.until("traffic is drawn", `document.querySelectorAll('#charts .chart').length >= 4`)

	// Cells change while the mirror copies.
	const drawing = `document.querySelector('#map-canvas').toDataURL()`
	before := value[string](b, drawing)
	copied := b.text("#map-legend li b")
	b.until("cells change", `document.querySelector('#map-legend li b').textContent !== `+quote(copied))
	if value[string](b, drawing) == before {
		t.Error("the drawing is the same, though chunks were copied")
	}

	// Keys and wheel zoom, down to chunks.
	whole := value[float64](b, `+document.querySelector('#map-canvas').dataset.cellSize`)
	b.press("#map-canvas", "+")
	b.until("a key zooms in", `+document.querySelector('#map-canvas').dataset.cellSize < `+number(whole))
	contains(t, b.text("#map-range"), "512 MiB – 1.50 GiB")
	b.picture("map-zoomed", "#map-section")
	b.press("#map-canvas", kb.Home)
	b.until("a key goes to the start", `document.querySelector('#map-range').textContent.startsWith('0 B')`)
	for range 7 {
		at := b.text("#map-range")
		b.press("#map-canvas", "+")
		b.until("it zooms in further", `document.querySelector('#map-range').textContent !== `+quote(at))
	}
	contains(t, b.text("#map-range"), "a square is 64.0 KiB, one chunk")
	b.press("#map-canvas", "0")
	b.until("a key shows the whole disk", `document.querySelector('#map-range').textContent.startsWith('whole disk')`)
	value[bool](b, `document.querySelector('#map-canvas').dispatchEvent(new WheelEvent('wheel',
		{deltaY: -100, cancelable: true, bubbles: true, clientX: 300, clientY: 600}))`)
	b.until("the wheel zooms in", `!document.querySelector('#map-range').textContent.startsWith('whole disk')`)
	b.click("#map-all")
	b.until("the button shows the whole disk", `document.querySelector('#map-range').textContent.startsWith('whole disk')`)

	// Dark, by the system's wish and by the button.
	const ground = `getComputedStyle(document.body).backgroundColor`
	light := value[string](b, ground)
	b.until("there is a line in the charts", `document.querySelector('#charts .line').getAttribute('d').split('L').length > `+strconv.Itoa(lines()))
	b.picture("page-light", "")
	b.prefer("dark")
	b.until("the system's dark is followed", ground+` !== `+quote(light))
	b.picture("page-dark", "")
	b.click("#theme")
	b.until("the button makes it light", ground+` === `+quote(light))
	value[any](b, `scrollTo({top: document.querySelector('#traffic').offsetTop - 70, behavior: 'instant'})`)
	b.picture("traffic-and-graph", "")

	// No control without the token, and control with it.
	if value[bool](b, `document.querySelector('[data-job=move] .buttons').offsetParent !== null`) {
		t.Error("there are buttons to control the job before anybody gave the token")
	}
	b.click("#unlock")
	b.answer("not the token")
	b.until("a wrong token is refused", `document.querySelector('#ask-error').textContent.includes('not that of this daemon')`)
	for _, said := range b.complaints() {
		if !strings.Contains(said, "401") {
			t.Errorf("the browser says: %s", said)
		}
	}
	b.answer(strings.TrimSpace(string(token)))
	b.until("the right one unlocks", `document.querySelector('[data-job=move] .buttons').offsetParent !== null`)
	b.order("pause")
	b.until("the job is paused", `document.querySelector('[data-job=move] .badge').textContent === 'paused'`)
	value[any](b, `scrollTo({top: 0, behavior: 'instant'})`)
	b.picture("control", "[data-job=move]")
	b.order("resume")
	b.until("the job goes on", `document.querySelector('[data-job=move] .badge').textContent === 'running'`)
	b.click("[data-job=move] [data-verb=speed]")
	b.answer("0")
	b.until("the job gets ready", `document.querySelector('[data-job=move] .badge').textContent === 'ready'`)
	b.until("the event of that is shown", `document.querySelector('#event-list [data-name=BLOCK_JOB_READY]') !== null`)
	b.order("complete")
	b.until("the job is over", `document.querySelector('[data-job=move] .badge').textContent === 'concluded'`)
	b.until("the guest is on the copy", `document.querySelector('#export-list').textContent.includes('copy')`)

	// A narrow screen needs no scrolling to the side.
	b.run(chromedp.EmulateViewport(390, 800))
	b.until("the page fits", `document.documentElement.scrollWidth <= 390`)
	b.until("the map has fewer squares", `+document.querySelector('#map-canvas').dataset.cells < 1000`)
	b.picture("narrow", "")
}

// order presses the button of a verb, and confirms.
func (b *tab) order(verb string) {
	b.t.Helper()
	b.until(verb+" is possible", `!document.querySelector('[data-job=move] [data-verb=`+verb+`]').disabled`)
	b.click("[data-job=move] [data-verb=" + verb + "]")
	b.click("#ask-yes")
	b.until("the dialog is gone", `!document.querySelector('#ask').open`)
}

// TestReadOnlyPage has a page without control say so, and a daemon that goes be noticed.
func TestReadOnlyPage(t *testing.T) {
	needChromium(t)
	d := underWay(t)
	b := open(t, d, 1000, 700)
	b.until("the job is shown", `document.querySelector('[data-job=move] .badge')?.textContent === 'running'`)
	if !value[bool](b, `document.querySelector('#unlock').offsetParent === null && document.querySelector('#readonly').offsetParent !== null`) {
		t.Error("the page does not say that it is read-only")
	}
	d.do("job-cancel", args{"id": "move"})
	d.do("quit", nil)
	b.until("the end of the daemon is noticed", `document.querySelector('#link').textContent.includes('no connection')`)
	b.complaints() // about the connection
}

func quote(s string) string   { return strconv.Quote(s) }
func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// lines is how many samples the charts show before pictures are made of them.
func lines() int {
	if *pictures == "" {
		return 3
	}
	return 20
}
