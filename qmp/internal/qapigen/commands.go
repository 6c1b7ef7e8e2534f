// SPDX-License-Identifier: Apache-2.0

package main

// negotiation is the command that the server handles itself.
const negotiation = "qmp_capabilities"

// writeCommands writes the interface that a daemon implements, and Dispatch.
func writeCommands(m *model, s *source) {
	s.line("\n// Commands is what a daemon can be asked to do: one method per command.")
	s.line("// Errors should be or wrap a *qmp.Error; others become a GenericError.")
	s.line("type Commands interface {")
	for _, c := range m.commands {
		if c.name == negotiation {
			continue
		}
		s.line("")
		s.comment(goName(c.name) + " is " + c.name + ". " + c.doc.text)
		args, result := "", "error"
		if c.args != nil {
			args = ", args *" + c.args.name
		}
		if c.returns != nil {
			result = "(" + c.returns.goType() + ", error)"
		}
		s.line("%s(ctx context.Context%s) %s", goName(c.name), args, result)
	}
	s.line("}")

	s.line("\n// Dispatch checks the arguments of a command and executes it. The result")
	s.line("// is nil or a qmp.Encodable.")
	s.line("func Dispatch(ctx context.Context, impl Commands, name string, args *qmp.Object) (any, error) {")
	s.line("switch name {")
	for _, c := range m.commands {
		if c.name == negotiation {
			continue
		}
		s.line("case %q:", c.name)
		pass := ""
		if c.args != nil {
			s.line("var a %s\nif err := qmp.Decode(args, qmp.Strict, &a); err != nil {\nreturn nil, err\n}", c.args.name)
			pass = ", &a"
		} else {
			s.line("if err := noArguments(args); err != nil {\nreturn nil, err\n}")
		}
		call := "impl." + goName(c.name) + "(ctx" + pass + ")"
		if c.returns == nil {
			s.line("return nil, %s", call)
			continue
		}
		s.line("r, err := %s\nif err != nil {\nreturn nil, err\n}", call)
		if c.returns.list {
			elem := *c.returns
			elem.list = false
			s.line("return list[%s, *%[1]s](r), nil", elem.goType())
		} else {
			s.line("return &r, nil")
		}
	}
	s.line("}\nreturn nil, qmp.ErrCommandNotFound(name)\n}")

	s.line("\n// commandNames are the names of all commands.")
	s.line("var commandNames = []string{")
	for _, c := range m.commands {
		s.line("%q,", c.name)
	}
	s.line("}")
}
