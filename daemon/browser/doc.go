// SPDX-License-Identifier: Apache-2.0

// Package browser has tests only: Chromium opens the web page of a built daemon, and does what an operator does.
//
//	Chromium, headless ──► page ──► daemon ◄── monitor: the test    A mirror is under way all the time,
//	        ▲                          ▲                            slow enough to be looked at.
//	        └── chromedp: the test     └── guests of the test
//
// A test fails if the browser reports an error on its console, a file that is not there, or a breach of the page's policy. With
// -browser.pictures DIR the screenshots of docs/web.md are made again.
package browser
