// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// family is a metric with its labels.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// families has all of them, for Describe.
var families []*prometheus.Desc

func define(kind prometheus.ValueType, name, help string, labels ...string) family {
	f := family{prometheus.NewDesc("blkmirror_"+name, help, labels, nil), kind}
	families = append(families, f.desc)
	return f
}

func counter(name, help string, labels ...string) family {
	return define(prometheus.CounterValue, name, help, labels...)
}

func gauge(name, help string, labels ...string) family {
	return define(prometheus.GaugeValue, name, help, labels...)
}

// sink is where a scrape puts what it found.
type sink chan<- prometheus.Metric

func (s sink) add(f family, value float64, labels ...string) {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "�") // an image may have any name for its bitmaps
	}
	m, err := prometheus.NewConstMetric(f.desc, f.kind, value, labels...)
	if err != nil {
		m = prometheus.NewInvalidMetric(f.desc, err)
	}
	s <- m
}

func (s sink) count(f family, value int64, labels ...string) { s.add(f, float64(value), labels...) }

func (s sink) flag(f family, on bool, labels ...string) {
	value := 0.0
	if on {
		value = 1
	}
	s.add(f, value, labels...)
}

var (
	buildInfo = gauge("build_info", "Always 1; the labels say what program this is.", "version", "revision", "modified", "goversion")

	nodeInfo       = gauge("node_info", "Always 1; the labels say what a node is.", "node", "driver", "read_only")
	nodeSize       = gauge("node_size_bytes", "Length of the disk of a node.", "node")
	nodeOperations = counter("node_operations_total", "Requests of a node that passed its checks.", "node", "operation")
	nodeBytes      = counter("node_bytes_total", "Bytes of requests of a node that passed its checks.", "node", "operation")
	nodeErrors     = counter("node_errors_total", "Requests of a node that failed; those that write zeroes are writes.", "node", "operation")
	nodeLatency    = gauge("node_latency_seconds", "How long requests took from the node down.", "node", "operation")
	nodeConnected  = gauge("node_connected", "Whether a node whose disk is on an NBD server has a connection to it.", "node")
	nodeReconnects = counter("node_reconnects_total", "How often a node lost its server and had it again.", "node")
	nodeLosses     = counter("node_connection_losses_total", "How often a node lost its server.", "node")
	bitmapDirty    = gauge("bitmap_dirty_bytes", "Bytes that are dirty in a bitmap of a node, whole granules.", "node", "bitmap")

	exportInfo       = gauge("export_info", "Always 1; the labels say what an export is.", "export", "type", "node")
	exportOperations = counter("export_operations_total", "Requests of clients that the disk was asked to carry out.", "export", "operation")
	exportBytes      = counter("export_bytes_total", "Bytes of requests of clients that succeeded.", "export", "operation")
	exportErrors     = counter("export_errors_total", "Requests of clients that the disk failed, or that were refused.", "export", "reason")
	exportLatency    = gauge("export_latency_seconds", "How long requests of clients took, without the time that they waited before a graph change.", "export", "operation")
	exportClients    = gauge("export_connections", "Clients of an export.", "export")

	connOperations = counter("connection_operations_total", "Requests of a client that the disk was asked to carry out.", "export", "connection", "operation")
	connBytes      = counter("connection_bytes_total", "Bytes of requests of a client that succeeded.", "export", "connection", "operation")
	connErrors     = counter("connection_errors_total", "Requests of a client that the disk failed, or that were refused.", "export", "connection", "reason")
	connInFlight   = gauge("connection_requests_in_flight", "Requests of a client that were read and not answered yet.", "export", "connection")

	nbdUp      = gauge("nbd_server_up", "Whether the NBD server listens.")
	nbdClients = gauge("nbd_connections", "Clients of the NBD server, those included that have not chosen an export.")
	nbdEver    = counter("nbd_connections_total", "Clients that have been connected to the NBD server.")

	jobStatus    = gauge("job_status", "Always 1; the label status says in what state a job is.", "job_id", "type", "status")
	jobDone      = gauge("job_progress_bytes", "What a job has done, in units that are bytes for mirrors.", "job_id", "type")
	jobTotal     = gauge("job_total_bytes", "What a job will have done when nothing is left, an estimate.", "job_id", "type")
	jobSpeed     = gauge("job_speed_limit_bytes_per_second", "How fast a job may be; 0 is no limit.", "job_id", "type")
	jobPaused    = gauge("job_paused", "Whether a job is paused, by an operator or by an error.", "job_id", "type")
	jobFailing   = gauge("job_io_failing", "Whether an error of a disk holds a job.", "job_id", "type")
	jobErrors    = counter("job_errors_total", "Errors of disks that a job has met.", "job_id", "type", "operation")
	jobsFailed   = counter("jobs_failed_total", "Jobs that ended with an error.")
	jobsFinished = counter("jobs_completed_total", "Block jobs that ended well.")

	mirrorBytes      = counter("mirror_bytes_total", "Bytes that a mirror has dealt with: by the copy (copied, zeroed, skipped, offloaded), or written through by guests (mirrored).", "job_id", "class")
	mirrorDirtied    = counter("mirror_dirtied_bytes_total", "Bytes that guests made dirty.", "job_id")
	mirrorDirty      = gauge("mirror_dirty_bytes", "Bytes that the target lacks.", "job_id")
	mirrorRate       = gauge("mirror_copy_rate_bytes_per_second", "How fast the copy was of late.", "job_id")
	mirrorLeft       = gauge("mirror_time_left_seconds", "When nothing will be dirty, if all goes on as it does; absent if that is never.", "job_id")
	mirrorConverging = gauge("mirror_converging", "Whether the copy will catch up with the guests if all goes on as it does.", "job_id")
	mirrorSynced     = gauge("mirror_synced", "Whether the target is what guests see.", "job_id")
	mirrorMode       = gauge("mirror_copy_mode", "Always 1; the labels say what becomes of guests' writes, and whether the job chooses that.", "job_id", "mode", "auto")
	mirrorDelay      = gauge("mirror_guest_write_delay_seconds", "What a mirror adds to a guest's write, a moving mean.", "job_id")
	mirrorSilent     = gauge("mirror_target_silent", "Whether the target gives no answer.", "job_id")
	verifyEqual      = gauge("verify_equal_bytes", "Bytes that were found equal.", "job_id")
	verifyLeft       = gauge("verify_left_bytes", "Bytes that are to be compared still.", "job_id")
	verifyDiffering  = gauge("verify_differing_bytes", "Bytes that were found to differ.", "job_id")

	memoryLimit    = gauge("memory_limit_bytes", "Memory that requests may have (--memory-limit).")
	memoryUsed     = gauge("memory_used_bytes", "Memory that requests have.")
	memoryWaiting  = gauge("memory_waiting", "Who waits for memory.")
	monitorClients = gauge("monitor_clients", "Clients of monitors.")
	commands       = counter("monitor_commands_total", "Commands that were executed.", "command", "result")
	events         = counter("events_total", "Events that monitors were told.", "event")
	stateOn        = gauge("state_directory", "Whether there is a state directory.")
	stateErrors    = counter("state_errors_total", "Failures to record something in the state directory.")
	stateMissing   = counter("state_not_restored_total", "What of the state did not come back at the start.")
	traceDropped   = counter("trace_dropped_total", "Requests that are missing in the trace, as there was no room for them.")
	traceRecorded  = counter("trace_records_total", "Requests that are in the trace.")
)
