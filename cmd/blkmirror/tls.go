// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/daemon/credentials"
	"github.com/blkmirror/blkmirror/qmp"
)

const tlsHelp = `Makes and checks certificates for NBD over TLS. They lie in a directory, under
the names that QEMU and its tools use, too:

  ca-cert.pem                      who signs certificates
  ca-key.pem                       the key for that; servers and clients do not need it
  server-cert.pem, server-key.pem  of a server
  client-cert.pem, client-key.pem  of a client

All files are readable by their owner only. A daemon takes them with
--object tls-creds-x509,id=tls0,dir=DIR,endpoint=server (or client).`

const (
	defaultCADays = 3650
	defaultDays   = 825
	maxDays       = 36500
)

func (c *cli) tlsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "tls", Short: "make and check certificates for NBD over TLS", Long: tlsHelp, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usage("no command given: use init, issue or check") },
	}
	cmd.AddCommand(c.tlsInitCommand(), c.tlsIssueCommand(), c.tlsCheckCommand())
	return cmd
}

// tlsFlags are what certificates are made from.
type tlsFlags struct {
	authority    string // directory of the authority
	name         string
	organization string
	hosts        []string
	days         int
	force        bool
}

func (f *tlsFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.organization, "organization", "", "`NAME` of the organization in the subject")
	flags.StringSliceVar(&f.hosts, "host", nil, "`NAME` or address by which clients know the server; may be given again\n(default: this host and localhost)")
	flags.IntVar(&f.days, "days", defaultDays, "certificates are valid for `N` days, or as long as their authority is")
	flags.BoolVar(&f.force, "force", false, "replace files that are there")
}

func (f *tlsFlags) check() error {
	if f.days < 1 || f.days > maxDays {
		return usage("--days %d: use 1 to %d", f.days, maxDays)
	}
	for _, host := range f.hosts {
		if host == "" || strings.ContainsAny(host, " \t/") {
			return usage("--host %q is no host name and no address", host)
		}
	}
	return nil
}

// server is a request for a certificate of a server.
func (f *tlsFlags) server() (credentials.Request, error) {
	hosts := f.hosts
	if len(hosts) == 0 {
		hosts = []string{"localhost", "127.0.0.1", "::1"}
		if here, err := os.Hostname(); err == nil && here != "" && here != hosts[0] {
			hosts = append([]string{here}, hosts...)
		}
	}
	r, err := f.request(hosts[0])
	r.Server, r.Hosts = true, hosts
	return r, err
}

func (f *tlsFlags) request(otherwise string) (credentials.Request, error) {
	r := credentials.Request{Name: otherwise, Organization: f.organization, ValidFor: days(f.days), Replace: f.force}
	if f.name != "" {
		r.Name = f.name
	}
	return r, f.check()
}

func days(n int) time.Duration { return time.Duration(n) * 24 * time.Hour }

func (c *cli) tlsInitCommand() *cobra.Command {
	var f tlsFlags
	var client string
	caDays := defaultCADays
	cmd := &cobra.Command{
		Use: "init DIR", Short: "make an authority, and a certificate for a server and for a client", Args: cobra.ExactArgs(1),
		RunE: c.action(func(_ context.Context, args []string) error {
			dir := args[0]
			if caDays < 1 || caDays > maxDays {
				return usage("--ca-days %d: use 1 to %d", caDays, maxDays)
			}
			server, err := f.server()
			if err != nil {
				return err
			}
			name := "blkmirror CA"
			if f.name != "" {
				name = f.name
			}
			server.Name = server.Hosts[0]
			a, err := credentials.NewAuthority(dir, name, days(caDays), f.force)
			if err != nil {
				return err
			}
			if _, err := a.Issue(dir, server); err != nil {
				return err
			}
			guest := credentials.Request{Name: client, Organization: f.organization, ValidFor: days(f.days), Replace: f.force}
			if _, err := a.Issue(dir, guest); err != nil {
				return err
			}
			return c.checkTLS(dir, "")
		}),
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.name, "name", "", "`NAME` of the authority (default: blkmirror CA)")
	cmd.Flags().StringVar(&client, "client", "client", "`NAME` of the client")
	cmd.Flags().IntVar(&caDays, "ca-days", caDays, "the authority is valid for `N` days")
	return cmd
}

func (c *cli) tlsIssueCommand() *cobra.Command {
	var f tlsFlags
	cmd := &cobra.Command{
		Use: "issue {server|client} DIR", Short: "make one more certificate of an authority", Args: cobra.ExactArgs(2),
		Long: "Makes a certificate and its key in DIR, with a copy of the authority's certificate: all that the server or client needs.",
		RunE: c.action(func(_ context.Context, args []string) error {
			var r credentials.Request
			var err error
			switch args[0] {
			case "server":
				r, err = f.server()
			case "client":
				if r, err = f.request("client"); err == nil && len(f.hosts) > 0 {
					err = usage("--host is for servers")
				}
			default:
				err = usage("'%s' is neither server nor client", args[0])
			}
			if err != nil {
				return err
			}
			a, err := credentials.OpenAuthority(f.authority)
			if err != nil {
				return err
			}
			if _, err := a.Issue(args[1], r); err != nil {
				return err
			}
			return c.checkTLS(args[1], "")
		}),
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.authority, "ca", "", "`DIR` of the authority")
	cmd.Flags().StringVar(&f.name, "name", "", "common `NAME` in the subject (default: the first host, or client)")
	if err := cmd.MarkFlagRequired("ca"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (c *cli) tlsCheckCommand() *cobra.Command {
	var host string
	cmd := &cobra.Command{
		Use: "check DIR", Short: "tell what is in a directory of certificates, and whether it works", Args: cobra.ExactArgs(1),
		RunE: c.action(func(_ context.Context, args []string) error { return c.checkTLS(args[0], host) }),
	}
	cmd.Flags().StringVar(&host, "host", "", "`NAME` by which clients know the server (default: the first of its certificate)")
	return cmd
}

// checkTLS reads what is in a directory, as a daemon does, and lets both sides shake hands if both are there.
func (c *cli) checkTLS(dir, host string) error {
	var sides [2]*credentials.X509
	for i, name := range []string{credentials.ServerCert, credentials.ClientCert} {
		server := i == 0
		if _, err := os.Lstat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) && (server || sides[0] != nil) {
			continue // a client needs no certificate, but then there must be an authority's
		}
		loaded, err := credentials.Load(credentials.Options{Dir: dir, Server: server, VerifyPeer: true, SanityCheck: true})
		if err != nil {
			return err
		}
		sides[i] = loaded
		c.describe(name, loaded.Certificate())
	}
	if sides[0] == nil || sides[1] == nil {
		return nil
	}
	if host == "" {
		host = firstHost(sides[0].Certificate())
	}
	if err := credentials.Try(sides[0], sides[1], host); err != nil {
		return fmt.Errorf("a client that connects to '%s' does not get in: %w", host, err)
	}
	c.say(nil, "a client that connects to '%s' gets in", host)
	return nil
}

// describe tells of a certificate, nil for that of a client without one.
func (c *cli) describe(name string, cert *x509.Certificate) {
	if cert == nil {
		c.say(nil, "%s: none, good for servers that do not ask for one", name)
		return
	}
	hosts := []any{}
	text := ""
	for _, h := range hostsOf(cert) {
		hosts = append(hosts, h)
		text += " " + h
	}
	if text != "" {
		text = "\n  hosts   " + text
	}
	c.say(qmp.NewObject(qmp.Member{Name: "file", Value: name}, qmp.Member{Name: "subject", Value: credentials.Subject(cert)},
		qmp.Member{Name: "hosts", Value: hosts}, qmp.Member{Name: "not-after", Value: cert.NotAfter.UTC().Format(time.RFC3339)}),
		"%s\n  subject  %s\n  valid to %s%s", name, credentials.Subject(cert), cert.NotAfter.Local().Format(time.DateOnly), text)
}

func hostsOf(cert *x509.Certificate) []string {
	hosts := append([]string{}, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		hosts = append(hosts, net.IP.String(ip))
	}
	return hosts
}

func firstHost(cert *x509.Certificate) string {
	if hosts := hostsOf(cert); len(hosts) > 0 {
		return hosts[0]
	}
	return cert.Subject.CommonName
}
