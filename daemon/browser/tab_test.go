// SPDX-License-Identifier: Apache-2.0

package browser

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

type action = chromedp.Action[chromedp.Void]

// tab is a page in a browser of its own.
type tab struct {
	t   *testing.T
	ctx context.Context
	mu  struct {
		sync.Mutex
		said []string // what the browser complained about
	}
}

// open opens the page of a daemon.
func open(t *testing.T, d *daemon, width, height int64) *tab {
	t.Helper()
	b := &tab{t: t}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath(chromium), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(d.path("chromium")))
	allocated, free := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, closeTab := chromedp.NewContext(allocated, chromedp.WithListener(b.listen))
	b.ctx = ctx
	t.Cleanup(func() {
		ending, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := chromedp.Cancel(ending); err != nil {
			t.Logf("the browser did not end well: %v", err)
		}
		closeTab()
		free()
		for _, said := range b.complaints() {
			t.Errorf("the browser says: %s", said)
		}
	})
	must(t, chromedp.Do(ctx)) // starts the browser, which would end with a context that ends earlier
	b.run(call(log.Enable, cdp.Empty{}), chromedp.EmulateViewport(width, height), chromedp.Navigate(d.url))
	b.until("the page is live", `document.querySelector('#link.live') !== null`)
	return b
}

// call is an action that is one command of the protocol.
func call[P, R any](c cdp.Command[P, R], params P) action {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, params)
		return err
	})
}

// listen notes what the browser complains about. It must not wait.
func (b *tab) listen(e any) {
	switch e := e.(type) {
	case *cdpruntime.EventExceptionThrown:
		b.note(fmt.Sprintf("exception: %+v", e.ExceptionDetails))
	case *cdpruntime.EventConsoleAPICalled:
		if e.Type != cdpruntime.ConsoleAPICalledTypeLog && e.Type != cdpruntime.ConsoleAPICalledTypeDebug && e.Type != cdpruntime.ConsoleAPICalledTypeInfo {
			b.note(fmt.Sprintf("console: %s %v", e.Type, e.Args))
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			b.note("log: " + e.Entry.Text + " " + e.Entry.URL)
		}
	}
}

func (b *tab) note(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.said = append(b.mu.said, text)
}

// complaints takes what the browser complained about.
func (b *tab) complaints() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	said := b.mu.said
	b.mu.said = nil
	return said
}

func (b *tab) run(actions ...action) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("%v; the browser said %v", err, b.complaints())
	}
}

// get is what an action yields.
func get[T any](b *tab, a chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, a)
	if err != nil {
		b.t.Fatalf("%v; the browser said %v", err, b.complaints())
	}
	return v
}

// value is what an expression of the page yields. The page's policy forbids eval, but not to the debugger.
func value[T any](b *tab, expression string) T {
	b.t.Helper()
	return get(b, chromedp.Evaluate[T](expression))
}

// text is the text of an element.
func (b *tab) text(selector string) string {
	b.t.Helper()
	return value[string](b, fmt.Sprintf("document.querySelector(%q)?.textContent ?? ''", selector))
}

// until waits until an expression of the page holds.
func (b *tab) until(what, expression string) {
	b.t.Helper()
	eventually(b.t, what, func() bool { return value[bool](b, expression) })
}

// press presses keys while an element has the focus.
func (b *tab) press(selector, keys string) {
	b.t.Helper()
	b.run(chromedp.Focus(chromedp.CSS(selector)), chromedp.KeyEvent(keys))
}

func (b *tab) click(selector string) {
	b.t.Helper()
	b.run(chromedp.Click(chromedp.CSS(selector)))
}

// answer types into the dialog, and confirms.
func (b *tab) answer(text string) {
	b.t.Helper()
	field := chromedp.CSS("#ask-input")
	b.run(chromedp.WaitVisible(field))
	value[string](b, `document.querySelector('#ask-input').value = ''`)
	b.run(chromedp.SendKeys(field, text), chromedp.Click(chromedp.CSS("#ask-yes")))
}

// prefer has the system prefer dark or light.
func (b *tab) prefer(scheme string) {
	b.t.Helper()
	b.run(call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}))
}

// picture makes a screenshot of what the selector names, "" for what is in the window, if pictures are to be made.
func (b *tab) picture(name, selector string) {
	b.t.Helper()
	if *pictures == "" {
		return
	}
	take := chromedp.CaptureScreenshot()
	if selector != "" {
		take = chromedp.Screenshot(chromedp.CSS(selector), chromedp.NodeVisible)
	}
	png := get(b, take)
	must(b.t, os.MkdirAll(*pictures, 0o755))
	must(b.t, os.WriteFile(filepath.Join(*pictures, name+".png"), png, 0o644))
	b.t.Logf("%s.png has %d KiB", name, len(png)>>10)
}

func contains(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not have %q", text, w)
		}
	}
}
