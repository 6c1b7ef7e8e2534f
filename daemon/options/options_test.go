// SPDX-License-Identifier: Apache-2.0

package options

import (
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/qmp"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in, implied string
		want        string // JSON, or "! " and an error
	}{
		{"", "", `{}`},
		{"a=b", "", `{"a": "b"}`},
		{"a=b,", "", `{"a": "b"}`},
		{"a=b,c=d", "", `{"a": "b", "c": "d"}`},
		{"a=", "", `{"a": ""}`},
		{"a=b=c", "", `{"a": "b=c"}`},
		{"a=1,a=2", "", `{"a": "2"}`},
		{"a=x,,y,b=,,", "", `{"a": "x,y", "b": ","}`},
		{"a=,,,b=1", "", `{"a": ",", "b": "1"}`},
		{"a.b.c=1,a.b.d=2,a.e=3", "", `{"a": {"b": {"c": "1", "d": "2"}, "e": "3"}}`},
		{"x.1=b,x.0=a", "", `{"x": ["a", "b"]}`},
		{"x.0.y=1,x.0.z=2,x.1.y=3", "", `{"x": [{"y": "1", "z": "2"}, {"y": "3"}]}`},
		{"x.0.0=1", "", `{"x": [["1"]]}`},
		{"raw,node-name=r", "driver", `{"driver": "raw", "node-name": "r"}`},
		{"driver=raw", "driver", `{"driver": "raw"}`},
		{"a,,b", "type", `{"type": "a,b"}`},
		{"iothread", "qom-type", `{"qom-type": "iothread"}`},
		{`{"a": {"b": [1, true]}}`, "driver", `{"a": {"b": [1, true]}}`},
		{`{'a': 'b'} `, "", `{"a": "b"}`},

		{"raw", "", "! Expected '=' after parameter 'raw'"},
		{"a=b,c", "x", "! Expected '=' after parameter 'c'"},
		{",a=b", "", "! Expected '=' after parameter ''"},
		{"=b", "", "! Invalid parameter ''"},
		{"a.=b", "", "! Invalid parameter 'a.'"},
		{".a=b", "", "! Invalid parameter '.a'"},
		{"a..b=c", "", "! Invalid parameter 'a..b'"},
		{"a b=c", "", "! Invalid parameter 'a b'"},
		{"-a=b", "", "! Invalid parameter '-a'"},
		{"0=a", "", "! Invalid parameter '0'"},
		{"x.00=a", "", "! Invalid parameter 'x.00'"},
		{"a=1,a.b=2", "", "! Parameters 'a.*' used inconsistently"},
		{"a.b=1,a=2", "", "! Parameters 'a.*' used inconsistently"},
		{"a.b.c=1,a.b=2", "", "! Parameters 'a.b.*' used inconsistently"},
		{"x.0=a,x.y=b", "", "! Parameters 'x.*' used inconsistently"},
		{"x.0=a,x.2=b", "", "! Parameter 'x.1' missing"},
		{"x.999999999=a", "", "! Parameter 'x.0' missing"},
		{strings.Repeat("a.", 64) + "a=b", "", "! Parameter '" + strings.Repeat("a.", 64) + "a' has more than 64 parts"},
		{"a=" + strings.Repeat("x", maxText), "", "! text is longer than 1048576 bytes"},
		{`{"a": 1`, "", "! JSON parse error, the object is not complete"},
		{`{"a": 1} x`, "", "! JSON parse error, the object is followed by something else"},
		{`{"a": 1}4`, "", "! JSON parse error, the object is followed by something else"},
		{`{"a" 1}`, "", "! 1:6: JSON parse error, expecting ':'"},
	} {
		o, mode, err := Parse(c.in, c.implied)
		got := string(qmp.Encode(o))
		if err != nil {
			got = "! " + err.Error()
		}
		if got != c.want {
			t.Errorf("%.80s:\ngot  %s\nwant %s", c.in, got, c.want)
		}
		if isJSON := strings.HasPrefix(c.in, "{"); (mode == qmp.Strict) != isJSON {
			t.Errorf("%.80s: mode %d", c.in, mode)
		}
	}
}

// TestOptions checks every option from text to type, by what is encoded.
func TestOptions(t *testing.T) {
	blockdev := func(s string) (qmp.Encodable, error) { return Blockdev(s) }
	export := func(s string) (qmp.Encodable, error) { return Export(s) }
	server := func(s string) (qmp.Encodable, error) { return NBDServer(s) }
	object := func(s string) (qmp.Encodable, error) { return Object(s) }
	monitor := func(s string) (qmp.Encodable, error) { return Monitor(s) }
	chardev := func(s string) (qmp.Encodable, error) { return Chardev(s) }
	for _, c := range []struct {
		option func(string) (qmp.Encodable, error)
		in     string
		want   string
	}{
		{blockdev, "driver=raw,node-name=r,file.driver=null-co,file.size=4096,file.read-zeroes=on,cache.direct=off",
			`{"driver": "raw", "node-name": "r", "cache": {"direct": false}, "file": {"driver": "null-co", "size": 4096, "read-zeroes": true}}`},
		{blockdev, "raw,node-name=r,file=f", `{"driver": "raw", "node-name": "r", "file": "f"}`},
		{blockdev, `{"driver":"raw","node-name":"raw0","file":"file0"}`, `{"driver": "raw", "node-name": "raw0", "file": "file0"}`},
		{blockdev, "file,filename=/a,,b", `{"driver": "file", "filename": "/a,b"}`},
		{blockdev, "driver=nope", "! --blockdev driver=nope: Parameter 'driver' does not accept value 'nope'"},
		{blockdev, "node-name=x", "! --blockdev node-name=x: Parameter 'driver' is missing"},
		{blockdev, "null-co,read-only=1", "! --blockdev null-co,read-only=1: Parameter 'read-only' expects 'on' or 'off'"},
		{blockdev, `{"driver":"null-co","size":"1"}`, `! --blockdev {"driver":"null-co","size":"1"}: Invalid parameter type for 'size', expected: integer`},
		{blockdev, "raw,file.driver=file", "! --blockdev raw,file.driver=file: Parameter 'file.filename' is missing"},
		{export, "nbd,id=e,node-name=d,writable=on,bitmaps.0=b,bitmaps.1.node=n,bitmaps.1.name=c",
			`{"type": "nbd", "id": "e", "node-name": "d", "writable": true, "bitmaps": ["b", {"node": "n", "name": "c"}]}`},
		{server, "addr.type=unix,addr.path=/x,max-connections=3", `{"max-connections": 3, "addr": {"type": "unix", "path": "/x"}}`},
		{server, "addr.type=fd,addr.str=3", `{"addr": {"type": "fd", "str": "3"}}`},
		{server, "unix", "! --nbd-server unix: Expected '=' after parameter 'unix'"},
		{object, "throttle-group,id=tg0,limits.iops-total=1000", `{"qom-type": "throttle-group", "id": "tg0", "limits": {"iops-total": 1000}}`},
		{object, "no-such-object,id=x", "! --object no-such-object,id=x: Parameter 'qom-type' does not accept value 'no-such-object'"},
		{monitor, "second", `{"chardev": "second"}`},
		{monitor, "chardev=second,mode=control,pretty=on", `{"mode": "control", "pretty": true, "chardev": "second"}`},
		{monitor, "second,mode=readline", "! --monitor second,mode=readline: mode=readline is not available"},
		{chardev, "socket,id=c,path=/a,,b,server=on,wait=off", `{"backend": "socket", "id": "c", "path": "/a,b", "server": true, "wait": false}`},
		{chardev, "socket,id=c,path=x,server,nowait,nodelay", `{"backend": "socket", "id": "c", "path": "x", "server": true, "wait": false, "nodelay": true}`},
		{chardev, "socket,id=c,fd=5,server=on", `{"backend": "socket", "id": "c", "fd": "5", "server": true}`},
		{chardev, "socket,id=c,host=::1,port=4444,server=on", `{"backend": "socket", "id": "c", "host": "::1", "port": "4444", "server": true}`},
		{chardev, "stdio,id=c", `{"backend": "stdio", "id": "c"}`},
		{chardev, "stdio,id=c,path=x", "! --chardev stdio,id=c,path=x: Parameter 'path' is unexpected"},
		{chardev, "pty,id=c", "! --chardev pty,id=c: Parameter 'backend' does not accept value 'pty'"},
		{chardev, "socket,path=x,server=on", "! --chardev socket,path=x,server=on: Parameter 'id' is missing"},
		{chardev, "socket,id=c,server=on", "! --chardev socket,id=c,server=on: one of 'path', 'fd' and 'port' is needed"},
		{chardev, "socket,id=c,path=x,port=1,server=on", "! --chardev socket,id=c,path=x,port=1,server=on: 'path', 'fd' and 'port' exclude each other"},
		{chardev, "socket,id=c,path=x,host=h,server=on", "! --chardev socket,id=c,path=x,host=h,server=on: 'host' needs 'port'"},
		{chardev, "socket,id=c,path=x", "! --chardev socket,id=c,path=x: only 'server=on' is available"},
		{chardev, "socket,id=c,path=x,server,telnet", "! --chardev socket,id=c,path=x,server,telnet: 'telnet' is not available"},
		{chardev, "socket,id=c,path=x,server,abstract", "! --chardev socket,id=c,path=x,server,abstract: 'abstract' is not available"},
		{chardev, "socket,id=c,path=x,server,reconnect=1", "! --chardev socket,id=c,path=x,server,reconnect=1: 'reconnect' is for clients only"},
		{chardev, "socket,id=c,colour", "! --chardev socket,id=c,colour: Parameter 'colour' is unexpected"},
	} {
		v, err := c.option(c.in)
		got := ""
		if err != nil {
			got = "! " + err.Error()
		} else {
			got = string(qmp.Encode(v))
		}
		if got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.in, got, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"raw,a.b=c,,d", "x.0.y=1,x.1=2", `{"a": [1]}`, "a=1,a.b=2", "socket,id=c,server,nowait"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, mode, err := Parse(text, "driver")
		if err == nil && mode == qmp.Keyval && o != nil {
			checkStrings(t, o)
		}
		Blockdev(text)
		Chardev(text)
	})
}

// checkStrings checks that every leaf is a string.
func checkStrings(t *testing.T, value any) {
	switch v := value.(type) {
	case *qmp.Object:
		for _, inner := range v.All() {
			checkStrings(t, inner)
		}
	case []any:
		for _, inner := range v {
			checkStrings(t, inner)
		}
	case string:
	default:
		t.Errorf("%T in an object", v)
	}
}
