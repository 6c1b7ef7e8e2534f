// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
)

// sizeFlag is a number of bytes that may have a unit. It is nil unless given.
type sizeFlag struct{ value **int64 }

func (f sizeFlag) String() string { return "" }
func (f sizeFlag) Type() string   { return "SIZE" }

func (f sizeFlag) Set(text string) error {
	n, err := bytesize.Parse(text)
	if err != nil {
		return err
	}
	*f.value = &n
	return nil
}

// enumFlag is one of the names that the schema has for a type.
type enumFlag[T ~string] struct {
	value *T
	names []T
}

func (f enumFlag[T]) String() string { return "" }
func (f enumFlag[T]) Type() string   { return f.list("|") }

func (f enumFlag[T]) list(separator string) string {
	names := make([]string, len(f.names))
	for i, name := range f.names {
		names[i] = string(name)
	}
	return strings.Join(names, separator)
}

func (f enumFlag[T]) Set(text string) error {
	if !slices.Contains(f.names, T(text)) {
		return fmt.Errorf("use one of %s", f.list(", "))
	}
	*f.value = T(text)
	return nil
}

// addEnum adds a flag with its names to a command, and to its completion.
func addEnum[T ~string](cmd *cobra.Command, value *T, flag, usage string, names ...T) {
	f := enumFlag[T]{value, names}
	cmd.Flags().Var(f, flag, usage)
	completions := make([]cobra.Completion, len(names))
	for i, name := range names {
		completions[i] = string(name)
	}
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(completions, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag was added twice, or not at all
	}
}

// optionalBool is a flag that is left to the daemon unless given.
type optionalBool struct{ value **bool }

func addOptionalBool(flags *pflag.FlagSet, value **bool, name, usage string) {
	flags.Var(optionalBool{value}, name, usage)
	flags.Lookup(name).NoOptDefVal = "true"
}

func (f optionalBool) String() string { return "" }
func (f optionalBool) Type() string   { return "bool" }

func (f optionalBool) Set(text string) error {
	on, known := map[string]bool{"true": true, "on": true, "yes": true, "false": false, "off": false, "no": false}[text]
	if !known {
		return fmt.Errorf("use true or false")
	}
	*f.value = &on
	return nil
}
