// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/qmp"
)

// object returns an object from JSON text.
func object(t testing.TB, text string) *qmp.Object {
	t.Helper()
	v, err := qmp.NewReader(strings.NewReader(text)).Next()
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v.(*qmp.Object)
}

// TestArguments checks what is accepted, and which error comes first.
func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args qmp.Decodable
		in   string
		want string // error, or "" for none
	}{
		{&JobPauseArguments{}, `{"id":"a"}`, ""},
		{&JobPauseArguments{}, `{}`, "Parameter 'id' is missing"},
		{&JobPauseArguments{}, `{"id":1}`, "Invalid parameter type for 'id', expected: string"},
		{&JobPauseArguments{}, `{"other":1,"id":"a"}`, "Parameter 'other' is unexpected"},
		{&JobPauseArguments{}, `{"other":1}`, "Parameter 'id' is missing"},

		{&BlockdevOptions{}, `{"driver":"null-co","node-name":"n"}`, ""},
		{&BlockdevOptions{}, `{"node-name":1}`, "Parameter 'driver' is missing"},
		{&BlockdevOptions{}, `{"driver":"nope","node-name":1}`, "Parameter 'driver' does not accept value 'nope'"},
		{&BlockdevOptions{}, `{"driver":"null-co","node-name":null}`, "Invalid parameter type for 'node-name', expected: string"},
		{&BlockdevOptions{}, `{"driver":"null-co","size":"large"}`, "Invalid parameter type for 'size', expected: integer"},
		{&BlockdevOptions{}, `{"driver":"null-co","read-zeroes":1}`, "Invalid parameter type for 'read-zeroes', expected: boolean"},
		{&BlockdevOptions{}, `{"driver":"null-co","filename":"x"}`, "Parameter 'filename' is unexpected"},
		{&BlockdevOptions{}, `{"driver":"null-co","cache":{"bogus":1}}`, "Parameter 'cache.bogus' is unexpected"},
		{&BlockdevOptions{}, `{"driver":"null-co","cache":[]}`, "Invalid parameter type for 'cache', expected: object"},
		{&BlockdevOptions{}, `{"driver":"raw"}`, "Parameter 'file' is missing"},
		{&BlockdevOptions{}, `{"driver":"raw","file":"f"}`, ""},
		{&BlockdevOptions{}, `{"driver":"raw","file":1}`, "Invalid parameter type for 'file', expected: BlockdevRef"},
		{&BlockdevOptions{}, `{"driver":"raw","file":null}`, "Invalid parameter type for 'file', expected: BlockdevRef"},
		{&BlockdevOptions{}, `{"driver":"raw","file":{"driver":"file"}}`, "Parameter 'file.filename' is missing"},
		{&BlockdevOptions{}, `{"driver":"raw","file":{"driver":"file","filename":"x","bogus":1}}`, "Parameter 'file.bogus' is unexpected"},
		{&BlockdevOptions{}, `{"driver":"raw","file":{"driver":"file","filename":"x","aio":"fast"}}`, "Parameter 'file.aio' does not accept value 'fast'"},

		{&BlockdevMirrorArguments{}, `{"device":"a","target":"b","sync":"full","granularity":4294967296}`, "Parameter 'granularity' expects uint32_t"},
		{&BlockdevMirrorArguments{}, `{"device":"a","target":"b","sync":"full","granularity":-1}`, "Parameter 'granularity' expects uint32_t"},
		{&BlockdevMirrorArguments{}, `{"device":"a","target":"b","sync":"full","unmap":true}`, "Parameter 'unmap' is unexpected"},
		{&BlockdevMirrorArguments{}, `{"device":"a","target":"b"}`, "Parameter 'sync' is missing"},

		{&BlockdevCreateArguments{}, `{"job-id":"c","options":{"driver":"file","filename":"x"}}`, "Parameter 'options.size' is missing"},
		{&BlockdevCreateArguments{}, `{"job-id":"c","options":{"driver":"file","filename":"x","size":-1}}`, "Parameter 'options.size' expects uint64_t"},
		{&BlockdevCreateArguments{}, `{"job-id":"c","options":{"driver":"raw"}}`, ""},
		{&BlockdevCreateArguments{}, `{"job-id":"c","options":{"driver":"raw","size":1}}`, "Parameter 'options.size' is unexpected"},

		{&BlockJobChangeOptions{}, `{"id":"m","type":"commit","copy-mode":"background"}`, "Parameter 'copy-mode' is unexpected"},
		{&BlockJobChangeOptions{}, `{"id":"m","type":"commit"}`, ""},

		{&NbdServerOptionsLegacy{}, `{"addr":{"type":"unix","data":{"path":"x"}}}`, ""},
		{&NbdServerOptionsLegacy{}, `{"addr":{"type":"unix","path":"x"}}`, "Parameter 'addr.data' is missing"},
		{&NbdServerOptionsLegacy{}, `{"addr":{"type":"inet","data":{"host":"h","port":10809}}}`, "Invalid parameter type for 'addr.data.port', expected: string"},

		{&BlockExportOptions{}, `{"type":"nbd","id":"e","node-name":"d","iothread":["a"],"bitmaps":["b",{"node":"n","name":"c"}]}`, ""},
		{&BlockExportOptions{}, `{"type":"nbd","id":"e","node-name":"d","bitmaps":[1]}`, "Invalid parameter type for 'bitmaps[0]', expected: BlockDirtyBitmapOrStr"},
		{&BlockExportOptions{}, `{"type":"nbd","id":"e","node-name":"d","bitmaps":["a",{"node":"n"}]}`, "Parameter 'bitmaps[1].name' is missing"},
		{&BlockExportOptions{}, `{"type":"nbd","id":"e","node-name":"d","bitmaps":"a"}`, "Invalid parameter type for 'bitmaps', expected: array"},
		{&BlockExportOptions{}, `{"type":"nbd","id":"e","node-name":"d","iothread":[1]}`, "Invalid parameter type for 'iothread[0]', expected: string"},

		{&ObjectOptions{}, `{"qom-type":"throttle-group","id":"t","limits":{"iops-total":1}}`, ""},
		{&ObjectOptions{}, `{"qom-type":"throttle-group","id":"t","foo":1}`, "Parameter 'foo' is unexpected"},
		{&ObjectOptions{}, `{"qom-type":"iothread","id":"t","poll-max-ns":0,"thread-pool-max":4}`, ""},
	} {
		err := qmp.Decode(object(t, c.in), qmp.Strict, c.args)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%T %s:\ngot  %q\nwant %q", c.args, c.in, got, c.want)
		}
	}
}

// TestRoundTrip checks that what is decoded is encoded again, by both codecs.
func TestRoundTrip(t *testing.T) {
	for _, c := range []struct {
		v    qmp.Decodable
		text string
	}{
		{&BlockdevOptions{}, `{"driver": "raw", "node-name": "r", "cache": {"direct": false}, "read-only": true, "detect-zeroes": "unmap", "file": {"driver": "file", "filename": "x"}, "offset": 512}`},
		{&BlockdevOptions{}, `{"driver": "throttle", "throttle-group": "t", "file": "f"}`},
		{&BlockExportOptions{}, `{"type": "nbd", "id": "e", "iothread": ["a", "b"], "node-name": "d", "name": "", "bitmaps": ["b", {"node": "n", "name": "c"}]}`},
		{&BlockExportOptions{}, `{"type": "nbd", "id": "e", "iothread": "a", "node-name": "d", "bitmaps": []}`},
		{&JobInfo{}, `{"copied-bytes": 5, "id": "m", "type": "mirror", "status": "null", "current-progress": -1, "total-progress": 9223372036854775807}`},
		{&BlockJobInfo{}, `{"type": "mirror", "device": "m", "len": 1, "offset": 1, "busy": false, "paused": true, "speed": 0, "io-status": "ok", "ready": true, "status": "ready", "auto-finalize": true, "auto-dismiss": false, "dirty-bytes": 0, "actively-synced": true}`},
		{&BlockJobInfo{}, `{"type": "create", "device": "m", "len": 1, "offset": 1, "busy": false, "paused": true, "speed": 0, "io-status": "ok", "ready": true, "status": "ready", "auto-finalize": true, "auto-dismiss": false, "error": ""}`},
		{&ImageInfo{}, `{"filename": "f", "format": "raw", "virtual-size": 1, "backing-image": {"filename": "g", "format": "raw", "virtual-size": 2}, "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "refcount-bits": 16, "compression-type": "zlib"}}}`},
		{&BlockdevOptions{}, `{"driver": "qcow2", "file": "f", "backing": null, "overlap-check": "none"}`},
		{&BlockdevOptions{}, `{"driver": "qcow2", "file": "f", "backing": "b"}`},
		{&BlockdevOptions{}, `{"driver": "qcow2", "file": "f", "backing": {"driver": "null-co"}}`},
		{&SchemaInfoObjectMember{}, `{"name": "a", "type": "1", "default": null}`},
		{&BlockLimitsInfo{}, `{"request-alignment": 1, "max-discard": 18446744073709551615, "max-iov": 1024, "min-mem-alignment": 4096, "opt-mem-alignment": 4096}`},
	} {
		if err := qmp.Decode(object(t, c.text), qmp.Strict, c.v); err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := string(qmp.Encode(c.v)); got != c.text {
			t.Errorf("got  %s\nwant %s", got, c.text)
		}
		text, err := json.Marshal(c.v)
		if err != nil {
			t.Fatal(err)
		}
		var got, want any
		json.Unmarshal(text, &got)
		json.Unmarshal([]byte(c.text), &want)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("encoding/json writes %s\nwanted %s", text, c.text)
		}
		again := reflect.New(reflect.TypeOf(c.v).Elem()).Interface()
		if err := json.Unmarshal([]byte(c.text), again); err != nil {
			t.Fatal(err)
		}
		if got := string(qmp.Encode(again)); got != c.text {
			t.Errorf("encoding/json reads %s\nwanted %s", got, c.text)
		}
	}
}

func TestLenient(t *testing.T) {
	var info JobInfo
	err := qmp.Decode(object(t, `{"id":"m","type":"teleport","status":"ready","current-progress":0,"total-progress":0,"new":{}}`), qmp.Lenient, &info)
	if err != nil || info.Type != "teleport" || info.Type.Valid() {
		t.Errorf("got %+v, %v", info, err)
	}
}

// TestDispatch checks that every command of the table reaches its method, and
// that arguments are checked before that.
func TestDispatch(t *testing.T) {
	ctx := context.Background()
	// A nil implementation panics when a method is called: none may be.
	for _, name := range CommandNames() {
		_, err := Dispatch(ctx, nil, name, object(t, `{"no-such-argument": 1}`))
		want := qmp.GenericError
		if name == "qmp_capabilities" {
			want = qmp.CommandNotFound
		}
		if qmp.AsError(err).Class != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := Dispatch(ctx, nil, "no-such-command", nil)
	if e := qmp.AsError(err); e.Class != qmp.CommandNotFound || e.Desc != "The command no-such-command has not been found" {
		t.Error(err)
	}

	impl := &daemon{}
	got, err := Dispatch(ctx, impl, "query-jobs", nil)
	if err != nil || string(qmp.Encode(got)) != `[{"id": "m", "type": "mirror", "status": "ready", "current-progress": 1, "total-progress": 2}]` {
		t.Errorf("query-jobs: %s, %v", qmp.Encode(got), err)
	}
	if got, err = Dispatch(ctx, impl, "query-block-jobs", nil); err != nil || string(qmp.Encode(got)) != "[]" {
		t.Errorf("query-block-jobs: %s, %v", qmp.Encode(got), err)
	}
	if got, err = Dispatch(ctx, impl, "job-pause", object(t, `{"id":"m"}`)); err != nil || got != nil || impl.paused != "m" {
		t.Errorf("job-pause: %v, %v, %q", got, err, impl.paused)
	}
	got, err = Dispatch(ctx, impl, "query-commands", nil)
	if err != nil || !strings.Contains(string(qmp.Encode(got)), `{"name": "qmp_capabilities"}`) {
		t.Errorf("query-commands: %s, %v", qmp.Encode(got), err)
	}
}

// daemon implements a few commands.
type daemon struct {
	Commands
	Introspection
	paused string
}

func (d *daemon) QueryCommands(ctx context.Context) ([]CommandInfo, error) {
	return d.Introspection.QueryCommands(ctx)
}

func (d *daemon) QueryQMPSchema(ctx context.Context) ([]SchemaInfo, error) {
	return d.Introspection.QueryQMPSchema(ctx)
}

func (d *daemon) QueryJobs(context.Context) ([]JobInfo, error) {
	return []JobInfo{{ID: "m", Type: JobTypeMirror, Status: JobStatusReady, CurrentProgress: 1, TotalProgress: 2}}, nil
}

func (d *daemon) QueryBlockJobs(context.Context) ([]BlockJobInfo, error) { return nil, nil }

func (d *daemon) JobPause(_ context.Context, args *JobPauseArguments) error {
	d.paused = args.ID
	return nil
}

func TestEvents(t *testing.T) {
	var sent qmp.Event = &BlockJobErrorEvent{
		Device: "m", Operation: IoOperationTypeWrite, Action: BlockErrorActionStop, Offset: new(int64(4096)),
	}
	const text = `{"device": "m", "operation": "write", "action": "stop", "offset": 4096}`
	if got := string(qmp.Encode(sent)); got != text || sent.EventName() != "BLOCK_JOB_ERROR" {
		t.Errorf("%s: %s", sent.EventName(), got)
	}
	got, err := DecodeEvent("BLOCK_JOB_ERROR", object(t, text))
	if err != nil || !reflect.DeepEqual(got, sent) {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := DecodeEvent("NO_SUCH_EVENT", nil); got != nil || err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := DecodeEvent("BLOCK_JOB_ERROR", nil); err == nil {
		t.Error("an event without data was accepted")
	}
}

// TestIntrospection checks that the schema hangs together: every type that
// is named exists, and commands and events are there by name.
func TestIntrospection(t *testing.T) {
	infos, err := Introspection{}.QueryQMPSchema(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*SchemaInfo{}
	for i := range infos {
		if byName[infos[i].Name] != nil {
			t.Errorf("%s is there twice", infos[i].Name)
		}
		byName[infos[i].Name] = &infos[i]
	}
	need := func(name, by string, types ...SchemaMetaType) {
		info := byName[name]
		if info == nil {
			t.Errorf("%s needs %s", by, name)
			return
		}
		for _, typ := range types {
			if info.MetaType == typ {
				return
			}
		}
		if len(types) > 0 {
			t.Errorf("%s, which %s needs, is of type %s", name, by, info.MetaType)
		}
	}
	for _, info := range infos {
		switch info.MetaType {
		case SchemaMetaTypeCommand:
			need(info.Command.ArgType, info.Name, SchemaMetaTypeObject)
			need(info.Command.RetType, info.Name)
		case SchemaMetaTypeEvent:
			need(info.Event.ArgType, info.Name, SchemaMetaTypeObject)
		case SchemaMetaTypeArray:
			need(info.Array.ElementType, info.Name)
		case SchemaMetaTypeAlternate:
			for _, m := range info.Alternate.Members {
				need(m.Type, info.Name)
			}
		case SchemaMetaTypeObject:
			for _, m := range info.Object.Members {
				need(m.Type, info.Name)
			}
			for _, v := range info.Object.Variants {
				need(v.Type, info.Name, SchemaMetaTypeObject)
			}
		}
	}
	for _, name := range CommandNames() {
		need(name, "the table", SchemaMetaTypeCommand)
	}
	need("BLOCK_JOB_READY", "everybody", SchemaMetaTypeEvent)

	// A client looks for what a command can do like this.
	args := byName[byName["blockdev-mirror"].Command.ArgType].Object
	found := false
	for _, m := range args.Members {
		if m.Name == "target-is-zero" {
			_, optional := m.Default.(qmp.Null)
			found = m.Type == "bool" && optional
		}
	}
	if !found {
		t.Errorf("target-is-zero is not an optional bool: %+v", args.Members)
	}
	options := byName[byName["blockdev-add"].Command.ArgType].Object
	if options.Tag == nil || *options.Tag != "driver" || len(options.Variants) == 0 {
		t.Errorf("blockdev-add: %+v", options)
	}
	if f := byName["block-job-pause"].Features; len(f) != 1 || f[0] != "deprecated" {
		t.Errorf("features of block-job-pause: %v", f)
	}
}
