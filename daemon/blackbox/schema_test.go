// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"encoding/json"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/qmp"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "seed of the random arguments (default: a new one)")
	callsFlag = flag.Int("calls", 60, "calls of each command with random arguments")
)

// entity is one entry of query-qmp-schema.
type entity struct {
	Name        string
	MetaType    string `json:"meta-type"`
	JSONType    string `json:"json-type"`
	ArgType     string `json:"arg-type"`
	ElementType string `json:"element-type"`
	Values      []string
	Tag         string
	Members     []struct {
		Name, Type string
		Default    json.RawMessage // present if optional
	}
	Variants []struct{ Case, Type string }
}

// liar makes arguments that are nearly right.
type liar struct {
	*rand.Rand
	types map[string]entity
	lies  bool // this time, something is to be wrong
}

var (
	someStrings = []string{"src", "dst", "src-file", "m", "export-src", "new", "#block1", "", "a b", "..", "/", "/dev/null", "127.0.0.1",
		"0", "tg", strings.Repeat("x", 5000), "\x00", "é\U0001f600", "-1", "18446744073709551616"}
	someNumbers = []any{0, 1, -1, 511, 512, 513, 4096, 65536, 1 << 31, int64(1) << 53, int64(1)<<62 + 1, int64(-1) << 63,
		uint64(1<<64 - 1), 1.5}
	somethingElse = []any{nil, true, 0, -1, "", "x", []any{}, []any{nil}, map[string]any{}, map[string]any{"a": 1}, 1e300}
)

func pick[T any](r *liar, from []T) T { return from[r.IntN(len(from))] }

// value makes a value of a type, or something else.
func (r *liar) value(name string, depth int) any {
	e, known := r.types[name]
	if r.lies && r.IntN(8) == 0 || !known || depth > 6 {
		return pick(r, somethingElse)
	}
	switch e.MetaType {
	case "builtin":
		switch e.JSONType {
		case "string":
			return pick(r, someStrings)
		case "boolean":
			return r.IntN(2) == 0
		case "int", "number":
			return pick(r, someNumbers)
		}
		return pick(r, somethingElse)
	case "enum":
		return pick(r, e.Values)
	case "array":
		list := []any{}
		for range r.IntN(4) {
			list = append(list, r.value(e.ElementType, depth+1))
		}
		return list
	case "alternate":
		return r.value(pick(r, e.Members).Type, depth+1)
	case "object":
		return r.object(e, depth)
	}
	return nil
}

func (r *liar) object(e entity, depth int) map[string]any {
	o := map[string]any{}
	for _, m := range e.Members {
		if m.Default != nil && r.IntN(2) == 0 || r.lies && r.IntN(10) == 0 {
			continue
		}
		o[m.Name] = r.value(m.Type, depth+1)
	}
	if e.Tag != "" {
		for _, v := range e.Variants {
			if o[e.Tag] == v.Case {
				for name, value := range r.object(r.types[v.Type], depth+1) {
					o[name] = value
				}
			}
		}
	}
	if r.lies && r.IntN(6) == 0 {
		o[pick(r, someStrings)] = pick(r, somethingElse)
	}
	// A name that has to be looked up elsewhere would only take time.
	if _, is := o["host"].(string); is {
		o["host"] = "127.0.0.1"
	}
	return o
}

// Whatever the arguments of a command are, the daemon answers and lives.
func TestRandomArguments(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	d := start(t)
	var schema []entity
	must(t, d.query("query-qmp-schema", nil, &schema))
	var commands []struct{ Name string }
	must(t, d.query("query-commands", nil, &commands))
	r := &liar{Rand: rand.New(rand.NewPCG(seed, 0)), types: map[string]entity{}}
	for _, e := range schema {
		r.types[e.MetaType[:1]+":"+e.Name] = e
		if e.MetaType != "command" && e.MetaType != "event" {
			r.types[e.Name] = e
		}
	}
	accepted, refused := 0, 0
	for range *callsFlag {
		r.prepare(d)
		for _, c := range commands {
			if c.Name == "quit" {
				continue
			}
			r.lies = r.IntN(2) == 0
			a, _ := r.value(r.types["c:"+c.Name].ArgType, 0).(map[string]any)
			if p, _ := a["options"].(map[string]any); p["preallocation"] != nil {
				p["size"] = 512 // else it would write for ever
			}
			var wire *qmp.Error
			switch err := d.try(c.Name, a); {
			case err == nil:
				accepted++
			case errors.As(err, &wire):
				refused++
				if wire.Desc == "" {
					t.Errorf("%s %v: an error without a text", c.Name, a)
				}
			default:
				text, _ := json.Marshal(a)
				t.Fatalf("%s %s: %v\n%s", c.Name, text, err, d.stderr.String())
			}
			for len(d.client.Events()) > 0 {
				<-d.client.Events()
			}
		}
	}
	d.alive()
	t.Logf("%d calls accepted, %d refused", accepted, refused)
	if accepted == 0 || refused == 0 {
		t.Error("that was no test")
	}
	if most := d.memory("VmHWM"); most > 1<<30 {
		t.Errorf("it took %d MiB", most>>20)
	}
}

// prepare brings back what commands work on, as far as it is gone. Any of it may be refused.
func (r *liar) prepare(d *daemon) {
	for _, name := range []string{"src", "dst"} {
		if _, err := os.Stat(d.path(name)); err != nil {
			image(d.t, d.path(name), 1<<20, 4096, 4096)
		}
		_ = d.try("blockdev-add", args{"driver": "raw", "node-name": name,
			"file": args{"driver": "file", "node-name": name + "-file", "filename": d.path(name)}})
	}
	_ = d.try("nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": d.path("nbd")}}})
	_ = d.try("block-export-add", args{"type": "nbd", "id": "export-src", "node-name": "src", "writable": true})
	_ = d.try("object-add", args{"qom-type": "throttle-group", "id": "tg"})
	if r.IntN(2) == 0 {
		_ = d.try("blockdev-mirror", mirrorArgs(args{"auto-finalize": r.IntN(2) == 0, "auto-dismiss": r.IntN(2) == 0}))
	}
}

// Every command says which of its required arguments is missing, and which one it does not know.
func TestArgumentsAreNamed(t *testing.T) {
	d := start(t)
	var schema []entity
	must(t, d.query("query-qmp-schema", nil, &schema))
	for _, e := range schema {
		if e.MetaType != "command" || e.Name == "quit" || e.Name == "qmp_capabilities" {
			continue
		}
		at := slices.IndexFunc(schema, func(o entity) bool { return o.MetaType == "object" && o.Name == e.ArgType })
		if at < 0 {
			t.Errorf("%s has arguments of unknown type %s", e.Name, e.ArgType)
			continue
		}
		required := ""
		for _, m := range schema[at].Members {
			if m.Default == nil {
				required = m.Name
				break
			}
		}
		if required != "" {
			err := d.try(e.Name, args{})
			if err == nil || !strings.Contains(err.Error(), "is missing") {
				t.Errorf("%s without arguments: %v", e.Name, err)
			}
			continue
		}
		if err := d.try(e.Name, args{"no-such": 1}); err == nil || !strings.Contains(err.Error(), "Parameter 'no-such' is unexpected") {
			t.Errorf("%s with an unknown argument: %v", e.Name, err)
		}
	}
}
