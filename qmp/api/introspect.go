// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	_ "embed"
	"encoding/json"
	"sync"
)

//go:embed introspect_gen.json
var introspection []byte

var schemaInfo = sync.OnceValues(func() ([]SchemaInfo, error) {
	var infos []SchemaInfo
	err := json.Unmarshal(introspection, &infos)
	return infos, err
})

// Introspection answers the commands that are about the schema itself. A
// daemon embeds it into its implementation of Commands.
type Introspection struct{}

// QueryCommands returns all commands.
func (Introspection) QueryCommands(context.Context) ([]CommandInfo, error) {
	infos := make([]CommandInfo, len(commandNames))
	for i, name := range commandNames {
		infos[i].Name = name
	}
	return infos, nil
}

// QueryQMPSchema returns the schema. The list is shared: do not change it.
func (Introspection) QueryQMPSchema(context.Context) ([]SchemaInfo, error) {
	return schemaInfo()
}
