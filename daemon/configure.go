// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/pflag"

	"github.com/blkmirror/blkmirror/daemon/config"
	"github.com/blkmirror/blkmirror/daemon/options"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// stepOrder is the order in which steps of a file act, where keys have none: nobody uses what comes later.
var stepOrder = []string{"object", "blockdev", "nbd-server", "export", "chardev", "monitor", "qmp"}

// spec says what a file may have: the options of the command line, but for those that make no sense there.
func spec(flags *pflag.FlagSet) config.Spec {
	s := config.Spec{}
	flags.VisitAll(func(f *pflag.Flag) {
		switch v := f.Value.(type) {
		case stepValue:
			switch v.option {
			case "chardev":
				s[f.Name] = config.Keyval
			case "qmp":
				s[f.Name] = config.List
			default:
				s[f.Name] = config.Object
			}
		case paths:
			s[f.Name] = config.List
		default:
			switch f.Value.Type() {
			case "bool":
				s[f.Name] = config.Switch
			case "stringArray":
				s[f.Name] = config.List
			default:
				s[f.Name] = config.Value
			}
		}
	})
	for _, name := range []string{"config", "check-config", "help", "version"} {
		delete(s, name)
	}
	return s
}

// readConfigs takes the options of files as if they stood first on the command line.
func (line *commandLine) readConfigs(flags *pflag.FlagSet, files []string) error {
	for _, file := range files {
		given, err := config.Read(file, spec(flags))
		if err != nil {
			return fmt.Errorf("--config: %w", err)
		}
		slices.SortStableFunc(given, func(a, b config.Option) int {
			return slices.Index(stepOrder, a.Name) - slices.Index(stepOrder, b.Name)
		})
		for _, o := range given {
			if slices.Contains(stepOrder, o.Name) {
				line.steps = append(line.steps, step{option: o.Name, text: o.Text, place: &o.Place})
				continue
			}
			if err := flags.Set(o.Name, o.Text); err != nil {
				return fmt.Errorf("--config: %s: '%s': %w", o.Place, o.Name, reason(err))
			}
		}
	}
	return nil
}

// reason is why pflag does not take a value, without the value.
func reason(err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return invalid.Unwrap()
	}
	return err
}

// check says what is wrong with a step that can be told without carrying it out.
func (s step) check() (err error) {
	switch s.option {
	case "blockdev":
		err = with(options.Blockdev, s.text, ignore[api.BlockdevOptions])
	case "object":
		err = with(options.Object, s.text, ignore[api.ObjectOptions])
	case "nbd-server":
		err = with(options.NBDServer, s.text, ignore[api.NbdServerOptions])
	case "export":
		err = with(options.Export, s.text, ignore[api.BlockExportOptions])
	case "chardev":
		err = with(options.Chardev, s.text, ignore[api.ChardevOptions])
	case "monitor":
		err = with(options.Monitor, s.text, ignore[api.MonitorOptions])
	case "qmp":
		err = with(options.QMP, s.text, ignore[api.ChardevOptions])
	}
	return s.explain(err)
}

func ignore[T any](*T) error { return nil }

// explain says in an error which option it is about: by its text, or by its place in a file.
func (s step) explain(err error) error {
	var named optionError
	switch is := errors.As(err, &named); {
	case err == nil:
		return nil
	case s.place != nil && is:
		// The text stays out of it.
		if cause := errors.Unwrap(named.error); cause != nil {
			err = cause
		}
		return s.place.Explain(s.option, err)
	case s.place != nil:
		return s.place.Explain(s.option, err)
	case is:
		return err
	}
	return fmt.Errorf("%s: %w", s, err)
}
