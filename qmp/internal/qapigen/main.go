// SPDX-License-Identifier: Apache-2.0

// Command qapigen turns the QAPI schema of qmp/schema into package qmp/api:
// Go types with encoders and strict decoders, the command table, events, and
// what query-qmp-schema answers.
//
//	go run ./qmp/internal/qapigen -out qmp/api
//
// Beside these it writes the schema for people, docs/reference/qmp.md.
//
// The text is parsed by go-qemu's qapi-schema, which stops without an error
// at what it does not know. So the text is also scanned here, for the names
// and the documentation of its definitions (scan.go), and a difference is an
// error. What can be wrong with a schema that parses, such as unknown types,
// missing documentation and names that clash in Go, is an error as well.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/blkmirror/blkmirror/qmp/schema"
)

// referencePage is where the page for people stands, seen from the generated package.
const referencePage = "../../docs/reference/qmp.md"

func main() {
	out := flag.String("out", ".", "folder of the generated package")
	flag.Parse()
	files, err := generate()
	if err == nil {
		err = write(*out, files)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "qapigen:", err)
		os.Exit(1)
	}
}

// generate returns the text of the generated files by name.
func generate() (map[string][]byte, error) {
	m, err := load(schema.Files)
	if err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return render(m)
}

func write(folder string, files map[string][]byte) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
