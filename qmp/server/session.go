// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"io"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// session is one client from greeting to end.
type session struct {
	server *Server
	conn   io.ReadWriteCloser
	pretty bool
	log    *logrus.Entry

	// These belong to the goroutine that runs the session.
	reader     *qmp.Reader
	encoder    *qmp.Encoder
	negotiated bool
	oob        bool
	input      *waits
	pace       pace

	output
}

func newSession(s *Server, conn io.ReadWriteCloser, opts ListenerOptions, id int) *session {
	ss := &session{
		server:  s,
		conn:    conn,
		input:   &waits{ReadWriteCloser: conn},
		pretty:  opts.Pretty,
		log:     s.config.Log.WithField("conn", id),
		encoder: qmp.NewEncoder(nil, opts.Pretty),
	}
	ss.reader = qmp.NewLimitedReader(ss.input, s.config.Limits)
	ss.output.init(conn, s.config.MaxOutput)
	return ss
}

// run serves the client until it leaves or the server stops.
func (ss *session) run() {
	writerDone := make(chan struct{})
	go func() {
		defer close(writerDone)
		ss.writeEvents()
	}()
	ss.greet()
	for ss.step() {
	}
	ss.drainOutput()
	ss.server.end(ss)
	ss.stopWriting()
	<-writerDone
	ss.hangUp()
}

// step serves one request, and pauses if the session has done much while guests' requests were under way. It returns false
// when there will be no more.
func (ss *session) step() bool {
	began := time.Now()
	ss.input.took = 0
	if !ss.serve() || !ss.flushReplies() {
		return false
	}
	now := time.Now()
	if pause := ss.pace.spend(now, now.Sub(began)-ss.input.took, ss.server.sessionCount()); pause > 0 && ss.server.config.Busy() {
		rest(pause)
	}
	return true
}

// serve reads a request and queues the reply. It returns false when there will be no more.
func (ss *session) serve() bool {
	value, err := ss.reader.Next()
	if err != nil {
		malformed, ok := errors.AsType[*qmp.Error](err)
		if !ok {
			return false
		}
		ss.answer(&request{}, nil, malformed, nil)
		return true
	}
	req, refused := parseRequest(value, ss.oob)
	if refused != nil {
		ss.answer(&req, nil, refused, nil)
		return true
	}
	if req.command == negotiation || !ss.negotiated {
		ss.negotiate(&req)
		return true
	}
	if req.oob {
		ss.answer(&req, nil, refuseOOB(req.command), nil)
		return true
	}
	return ss.execute(&req)
}

// greet writes what a server says first.
func (ss *session) greet() {
	e := ss.encoder
	e.Reset()
	e.BeginObject()
	e.Key("QMP")
	e.BeginObject()
	e.Key("version")
	ss.server.config.Version.EncodeQMP(e)
	e.Key("capabilities")
	e.BeginArray()
	e.Elem()
	e.String(string(api.QMPCapabilityOOB))
	e.EndArray()
	e.EndObject()
	e.EndObject()
	e.EndLine()
	ss.queue(e.Bytes(), false)
	ss.flush()
}

const negotiation = "qmp_capabilities"

// negotiate handles everything before negotiation is over, and
// qmp_capabilities after it.
func (ss *session) negotiate(req *request) {
	var err *qmp.Error
	var args api.QMPCapabilitiesArguments
	switch {
	case ss.negotiated:
		err = qmp.ClassErrorf(qmp.CommandNotFound, "Capabilities negotiation is already complete, command ignored")
	case req.command != negotiation:
		err = qmp.ClassErrorf(qmp.CommandNotFound, "Expecting capabilities negotiation with '"+negotiation+"'")
	default:
		if bad := qmp.Decode(req.arguments, qmp.Strict, &args); bad != nil {
			err = qmp.AsError(bad)
			break
		}
		ss.negotiated = true
		for _, c := range args.Enable {
			ss.oob = ss.oob || c == api.QMPCapabilityOOB
		}
	}
	ss.answer(req, nil, err, nil)
}

// refuseOOB returns the error for a request to execute a command out of band.
func refuseOOB(command string) *qmp.Error {
	if !api.HasCommand(command) {
		return qmp.ErrCommandNotFound(command)
	}
	return qmp.Errorf("The command %s does not support OOB", command)
}

// execute waits for its turn and runs a command. It returns false when the
// server has stopped.
func (ss *session) execute(req *request) bool {
	s := ss.server
	began := time.Now()
	select {
	case s.turn <- struct{}{}:
	case <-s.open.Done():
		return false
	}
	ss.input.took += time.Since(began) // that was waiting, too
	defer func() { <-s.turn }()
	if s.open.Err() != nil {
		return false
	}
	c := &call{Context: s.base, server: s}
	result, err := s.config.Commands(c, req.command, req.arguments)
	var failed *qmp.Error
	if err != nil {
		failed = qmp.AsError(err)
	}
	ss.answer(req, result, failed, c)
	return true
}

// answer queues a reply, and runs what is to follow it.
func (ss *session) answer(req *request, result any, failed *qmp.Error, c *call) {
	e := ss.encoder
	e.Reset()
	e.BeginObject()
	if failed == nil {
		e.Key("return")
		if result == nil {
			e.BeginObject()
			e.EndObject()
		} else {
			e.Value(result)
		}
	}
	if req.hasID {
		e.Key("id")
		e.Value(req.id)
	}
	if failed != nil {
		e.Key("error")
		e.BeginObject()
		e.Key("class")
		e.String(string(failed.Class))
		e.Key("desc")
		e.String(failed.Desc)
		e.EndObject()
	}
	e.EndObject()
	e.EndLine()
	ss.queue(e.Bytes(), ss.negotiated)
	if c == nil || !c.replied() {
		return
	}
	// The reply must not wait for what follows it.
	ss.wakeWriter()
	c.runAfter()
}
