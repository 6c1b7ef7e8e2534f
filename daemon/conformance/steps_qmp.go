// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// showReply makes the outcome of a reply.
func (r *run) showReply(reply message, f Filters) ([]Outcome, error) {
	body, _ := mask(reply.body, r.dirs).(map[string]any)
	id, hasID := body["id"]
	if problem, ok := body["error"].(map[string]any); ok {
		outcome := words("error %v", problem["class"])
		if hasID {
			outcome.Words += " id=" + renderJSON(id)
		}
		outcome.Comment = fmt.Sprint(problem["desc"])
		return []Outcome{outcome}, nil
	}
	word, value := "message", any(body)
	if result, ok := body["return"]; ok && !hasID {
		word, value = "return", result
	}
	value, err := f.apply(value)
	if err != nil {
		return nil, err
	}
	return []Outcome{withValue(word, value)}, nil
}

// showEvent makes the outcome of an event without filters.
func (r *run) showEvent(event map[string]any) Outcome {
	outcome, _ := r.filterEvent(event, Filters{}) // nothing to apply, nothing to go wrong
	return outcome
}

func (r *run) filterEvent(event map[string]any, f Filters) (Outcome, error) {
	event, _ = mask(event, r.dirs).(map[string]any)
	if f.Full {
		return withValue("message", event), nil
	}
	data, ok := event["data"]
	if !ok {
		data = map[string]any{}
	}
	data, err := f.apply(data)
	return withValue(fmt.Sprint(event["event"]), data), err
}

// sendCommand sends what COMMAND [KEY=VALUE ...] says.
func sendCommand(ctx context.Context, m *monitor, words []string) (message, error) {
	if len(words) == 0 {
		return message{}, errors.New("usage: qmp COMMAND [KEY=VALUE ...]")
	}
	arguments, err := buildArguments(words[1:])
	if err != nil {
		return message{}, err
	}
	return m.command(ctx, words[0], arguments)
}

func doQMP(ctx context.Context, r *run, m *monitor, step Step) ([]Outcome, error) {
	reply, err := sendCommand(ctx, m, splitJSONWords(step.Rest))
	if err != nil {
		return nil, err
	}
	return r.showReply(reply, step.Filters)
}

// doFlow is doQMP with the events that came before the reply.
func doFlow(ctx context.Context, r *run, m *monitor, step Step) ([]Outcome, error) {
	reply, err := sendCommand(ctx, m, splitJSONWords(step.Rest))
	if err != nil {
		return nil, err
	}
	var lines []Outcome
	for _, event := range m.eventsBefore(reply) {
		lines = append(lines, r.showEvent(event))
	}
	shown, err := r.showReply(reply, step.Filters)
	return append(lines, shown...), err
}

// doSend sends a line as it stands.
func doSend(ctx context.Context, r *run, m *monitor, step Step) ([]Outcome, error) {
	if err := m.send(step.Rest); err != nil {
		return nil, err
	}
	return doReply(ctx, r, m, step)
}

// doReply shows one more reply, for lines that cause several.
func doReply(ctx context.Context, r *run, m *monitor, step Step) ([]Outcome, error) {
	reply, err := m.reply(ctx)
	if err != nil {
		return nil, err
	}
	return r.showReply(reply, step.Filters)
}

func doGreeting(ctx context.Context, r *run, m *monitor, step Step) ([]Outcome, error) {
	greeting, err := m.greeting(ctx)
	if err != nil {
		return nil, err
	}
	return r.showReply(greeting, step.Filters)
}

func doNegotiate(ctx context.Context, _ *run, m *monitor, _ Step) ([]Outcome, error) {
	return nil, m.negotiate(ctx)
}

func parsePattern(rest string) (eventPattern, error) {
	words := splitJSONWords(rest)
	if len(words) == 0 {
		return eventPattern{}, errors.New("no event named")
	}
	data, err := buildArguments(words[1:])
	return eventPattern{words[0], data}, err
}

// doWait shows all events up to one that matches.
func doWait(ctx context.Context, r *run, m *monitor, step Step) ([]Outcome, error) {
	wanted, err := parsePattern(step.Rest)
	if err != nil {
		return nil, err
	}
	var lines []Outcome
	for {
		event, err := m.event(ctx)
		switch {
		case errors.Is(err, errNothingCame):
			lines = append(lines, words("timeout waiting for %s", step.Rest))
		case errors.Is(err, errMonitorClosed):
			lines = append(lines, words("no more events"))
		case err != nil:
			return lines, err
		default:
			shown, err := r.filterEvent(event, step.Filters)
			if err != nil {
				return lines, err
			}
			lines = append(lines, shown)
		}
		if err != nil || wanted.matches(event) {
			return step.Filters.order(lines), nil
		}
	}
}

// eventsSoFar takes the events that the daemon has sent by now; a command
// that does nothing shows how far that is.
func (m *monitor) eventsSoFar(ctx context.Context) ([]map[string]any, error) {
	reply, err := m.command(ctx, "query-version", nil)
	if err != nil {
		return nil, err
	}
	return m.eventsBefore(reply), nil
}

func doEvents(ctx context.Context, r *run, m *monitor, step Step) ([]Outcome, error) {
	events, err := m.eventsSoFar(ctx)
	var lines []Outcome
	for _, event := range events {
		shown, err := r.filterEvent(event, step.Filters)
		if err != nil {
			return lines, err
		}
		lines = append(lines, shown)
	}
	return step.Filters.order(lines), err
}

// doForget leaves out the events so far.
func doForget(ctx context.Context, _ *run, m *monitor, _ Step) ([]Outcome, error) {
	_, err := m.eventsSoFar(ctx)
	return nil, err
}

// doIgnore leaves out events from now on.
func doIgnore(_ context.Context, _ *run, m *monitor, step Step) ([]Outcome, error) {
	if step.Rest == "drains" {
		m.drains = map[string]string{}
		return nil, nil
	}
	pattern, err := parsePattern(step.Rest)
	m.ignored = append(m.ignored, pattern)
	return nil, err
}

// doUntil repeats a query until a condition holds.
func doUntil(ctx context.Context, r *run, m *monitor, step Step) ([]Outcome, error) {
	args := splitJSONWords(step.Rest)
	if len(args) != 4 {
		return nil, errors.New("usage: until COMMAND PATH OPERATOR VALUE")
	}
	command, path, operator, value := args[0], args[1], args[2], args[3]
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	timeout := time.NewTimer(r.options.Patience)
	defer timeout.Stop()
	for {
		reply, err := m.command(ctx, command, nil)
		if err != nil {
			return nil, err
		}
		found := dig(reply.body["return"], path)
		holds, err := satisfies(found, operator, parseValue(value))
		if err != nil {
			return nil, err
		}
		if holds {
			return []Outcome{words("reached %s %s %s", path, operator, value)}, nil
		}
		select {
		case <-again.C:
		case <-timeout.C:
			return []Outcome{words("not reached: %s is %s", path, renderJSON(found))}, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// satisfies compares what a query found; what is not there satisfies nothing.
func satisfies(found any, operator string, wanted any) (bool, error) {
	if found == nil {
		return false, nil
	}
	switch operator {
	case "=":
		return sameScalar(found, wanted), nil
	case "!=":
		return !sameScalar(found, wanted), nil
	case ">=", "<=":
		a, errA := number(found)
		b, errB := number(wanted)
		return operator == ">=" && a >= b || operator == "<=" && a <= b, errors.Join(errA, errB)
	}
	return false, fmt.Errorf("unknown operator %q", operator)
}

func number(value any) (float64, error) {
	n, ok := value.(json.Number)
	if !ok {
		return 0, fmt.Errorf("not a number: %s", renderJSON(value))
	}
	return n.Float64()
}

// doDisk adds a raw node over a file node; it says something only if that
// goes wrong.
func doDisk(ctx context.Context, r *run, rest string) ([]Outcome, error) {
	m := r.monitor(mainMonitor)
	args := splitJSONWords(rest)
	if len(args) < 2 || m == nil {
		return nil, errors.New("usage, with a daemon: disk NODE IMAGE [KEY=VALUE ...]")
	}
	command := slices.Concat([]string{"blockdev-add", "driver=raw", "node-name=" + args[0],
		"file.driver=file", "file.filename=" + r.path(args[1])}, args[2:])
	reply, err := sendCommand(ctx, m, command)
	if err != nil {
		return nil, err
	}
	if _, ok := reply.body["return"]; ok {
		return nil, nil
	}
	return r.showReply(reply, Filters{})
}
