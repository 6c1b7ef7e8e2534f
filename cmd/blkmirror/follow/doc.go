// SPDX-License-Identifier: Apache-2.0

// Package follow watches a job of a daemon until it is ready or over.
//
// A monitor tells about a job in two ways, and neither is enough. Events say
// what happened, in order and at once, but not how much was copied, and those
// from before the connection are lost. query-jobs says how far the job is,
// but a job that is over may have left the list before anybody asked. So the
// two are put together:
//
//	         events                           query-jobs, now and then
//	           |                                        |
//	created -> running -> ready -> waiting -> pending -> concluded -> null
//	             | ^        |                    |           ^
//	             v |        v                    v           |
//	           paused    standby              aborting ------+
//
//	COMPLETED without error: Completed      CANCELLED: Cancelled
//	COMPLETED with an error: Failed
//
// The connection delivers events and replies in one order: once the reply of
// a query is there, every event from before it is, too. A job that is missing
// in the reply has therefore ended already, with an event, or never was.
//
// The package does not start, change or end jobs, and shows nothing: it hands
// samples to an Observer. See package progress.
package follow
