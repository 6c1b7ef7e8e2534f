// SPDX-License-Identifier: Apache-2.0

package options

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// Parse takes the argument of an option apart. The mode says how the object
// is to be decoded: as Keyval or, if the text was JSON, as Strict. implied is
// the key of a first item that has none, or "".
func Parse(text, implied string) (*qmp.Object, qmp.Mode, error) {
	if strings.HasPrefix(text, "{") {
		o, err := parseJSON(text)
		return o, qmp.Strict, err
	}
	o, err := keyval(text, implied)
	return o, qmp.Keyval, err
}

// parseJSON takes one object and nothing else.
func parseJSON(text string) (*qmp.Object, error) {
	r := qmp.NewReader(strings.NewReader(text))
	value, err := r.Next()
	if err == io.ErrUnexpectedEOF {
		return nil, errors.New("JSON parse error, the object is not complete")
	}
	if err != nil {
		return nil, err
	}
	if _, err := r.Next(); err != io.EOF {
		return nil, errors.New("JSON parse error, the object is followed by something else")
	}
	return value.(*qmp.Object), nil // it begins with a brace
}

// decode fills v from the argument of an option. Errors name the option.
func decode(option, text, implied string, v qmp.Decodable) error {
	o, mode, err := Parse(text, implied)
	if err == nil {
		err = qmp.Decode(o, mode, v)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", option, text, err)
	}
	return nil
}

// Blockdev reads --blockdev [driver=]DRIVER,...
func Blockdev(text string) (*api.BlockdevOptions, error) {
	v := new(api.BlockdevOptions)
	return v, decode("--blockdev", text, "driver", v)
}

// Export reads --export [type=]TYPE,...
func Export(text string) (*api.BlockExportOptions, error) {
	v := new(api.BlockExportOptions)
	return v, decode("--export", text, "type", v)
}

// NBDServer reads --nbd-server addr.type=TYPE,...
func NBDServer(text string) (*api.NbdServerOptions, error) {
	v := new(api.NbdServerOptions)
	return v, decode("--nbd-server", text, "", v)
}

// Object reads --object [qom-type=]TYPE,id=ID,...
func Object(text string) (*api.ObjectOptions, error) {
	v := new(api.ObjectOptions)
	return v, decode("--object", text, "qom-type", v)
}

// Monitor reads --monitor [chardev=]ID,...
func Monitor(text string) (*api.MonitorOptions, error) {
	v := new(api.MonitorOptions)
	if err := decode("--monitor", text, "chardev", v); err != nil {
		return nil, err
	}
	if v.Mode == api.MonitorModeReadline {
		return nil, fmt.Errorf("--monitor %s: %w", text, errors.New("mode=readline is not available"))
	}
	return v, nil
}
