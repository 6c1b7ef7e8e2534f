// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const day = 24 * time.Hour

// office makes an authority with a certificate for a server "server" and one for a client "client".
func office(t *testing.T) (dir string, a *Authority) {
	t.Helper()
	dir = t.TempDir()
	a, err := NewAuthority(dir, "Test CA", day, false)
	must(t, err)
	_, err = a.Issue(dir, Request{Server: true, Name: "server", Hosts: []string{"server", "127.0.0.1"}, ValidFor: day})
	must(t, err)
	_, err = a.Issue(dir, Request{Name: "client", Organization: "Example, Inc", ValidFor: day})
	must(t, err)
	return dir, a
}

func load(t *testing.T, dir string, server, verify bool) *X509 {
	t.Helper()
	c, err := Load(Options{Dir: dir, Server: server, VerifyPeer: verify, SanityCheck: true})
	must(t, err)
	return c
}

func TestHandshake(t *testing.T) {
	dir, a := office(t)
	server, client := load(t, dir, true, true), load(t, dir, false, true)
	for host, works := range map[string]bool{"server": true, "127.0.0.1": true, "other": false, "127.0.0.2": false} {
		if err := Try(server, client, host); (err == nil) != works {
			t.Errorf("host %s: %v", host, err)
		}
	}
	if got := Subject(client.Certificate()); got != `O=Example\, Inc,CN=client` {
		t.Errorf("subject is %s", got)
	}
	foreign, _ := office(t)
	strangers, strangerServer := load(t, foreign, false, true), load(t, foreign, true, true)
	if err := Try(server, strangers, "server"); err == nil {
		t.Error("a client of another authority gets in")
	}
	if err := Try(strangerServer, client, "server"); err == nil {
		t.Error("a server of another authority is believed")
	}
	if err := Try(strangerServer, load(t, dir, false, false), "anything"); err == nil {
		t.Error("a server that verifies lets strangers in")
	}
	bare := t.TempDir()
	ca, err := os.ReadFile(filepath.Join(dir, CACert))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(bare, CACert), ca, 0o600))
	anonymous := load(t, bare, false, true)
	if err := Try(server, anonymous, "server"); err == nil {
		t.Error("a client without a certificate gets in")
	}
	if err := Try(load(t, dir, true, false), anonymous, "server"); err != nil {
		t.Errorf("a server that does not verify: %v", err)
	}
	if anonymous.Certificate() != nil {
		t.Error("a client has a certificate out of nothing")
	}
	// A list of revocations.
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(day),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: client.Certificate().SerialNumber, RevocationTime: time.Now()}}}, a.cert, a.key)
	must(t, err)
	crl := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})
	must(t, os.WriteFile(filepath.Join(dir, CACRL), crl, 0o600))
	if err := Try(load(t, dir, true, true), client, "server"); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a client with a revoked certificate: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(foreign, CACRL), crl, 0o600))
	if _, err := Load(Options{Dir: foreign, Server: true}); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("a list of somebody else: %v", err)
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir, a := office(t)
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 6 {
		t.Errorf("files are %v", entries)
	}
	for _, e := range entries {
		info, err := e.Info()
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
	if _, err := NewAuthority(dir, "Other", day, false); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("an authority was replaced: %v", err)
	}
	if _, err := a.Issue(dir, Request{Name: "x", ValidFor: day}); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("a certificate was replaced: %v", err)
	}
	if _, err := a.Issue(dir, Request{Name: "x", ValidFor: 1000 * day, Replace: true}); err != nil {
		t.Error(err)
	}
	if got := load(t, dir, false, true).Certificate(); got.Subject.CommonName != "x" || got.NotAfter.After(a.cert.NotAfter) {
		t.Errorf("certificate is of %v, to %v", got.Subject, got.NotAfter)
	}
	other, _ := office(t)
	if _, err := a.Issue(other, Request{Name: "x", ValidFor: day}); err == nil || !strings.Contains(err.Error(), "another authority") {
		t.Errorf("authorities were mixed: %v", err)
	}
	if again, err := OpenAuthority(dir); err != nil || again.cert.Subject.CommonName != "Test CA" {
		t.Errorf("authority is %v, %v", again, err)
	}
}

// TestBadFiles wants every error to name the file.
func TestBadFiles(t *testing.T) {
	for name, test := range map[string]struct {
		change func(dir string) error
		client bool
		words  []string
	}{
		"no directory":      {change: os.RemoveAll, words: []string{"Unable to access credentials", CACert, "no such file"}},
		"no certificate":    {change: remove(ServerCert), words: []string{ServerCert}},
		"no key":            {change: remove(ServerKey), words: []string{ServerKey}},
		"half a client":     {change: remove(ClientKey), client: true, words: []string{ClientKey}},
		"empty authority":   {change: put(CACert, ""), words: []string{CACert, "none in it"}},
		"rubbish":           {change: put(CACert, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), words: []string{CACert, "import"}},
		"rubbish in a list": {change: put(CACRL, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"), words: []string{CACRL}},
		"too long":          {change: put(ServerKey, strings.Repeat("x", maxFile+1)), words: []string{ServerKey, "more than"}},
		"wrong key":         {change: copyOver(ClientKey, ServerKey), words: []string{ServerKey, ServerCert}},
		"client's":          {change: both(copyOver(ClientKey, ServerKey), copyOver(ClientCert, ServerCert)), words: []string{ServerCert, "server"}},
		"authority's own":   {change: both(copyOver(CAKey, ServerKey), copyOver(CACert, ServerCert)), words: []string{ServerCert, "for a CA"}},
		"no authority":      {change: copyOver(ServerCert, CACert), words: []string{CACert, "not for a CA"}},
		"folder":            {change: both(remove(ServerKey), func(dir string) error { return os.Mkdir(filepath.Join(dir, ServerKey), 0o700) }), words: []string{ServerKey}},
	} {
		dir, _ := office(t)
		must(t, test.change(dir))
		_, err := Load(Options{Dir: dir, Server: !test.client, SanityCheck: true})
		for _, want := range test.words {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error is %v, want %q", name, err, want)
			}
		}
	}
	if _, err := Load(Options{}); err == nil || !strings.Contains(err.Error(), "Missing 'dir'") {
		t.Errorf("error is %v", err)
	}
	// Time.
	dir := t.TempDir()
	a, err := NewAuthority(dir, "CA", day, false)
	must(t, err)
	_, err = a.Issue(dir, Request{Server: true, Name: "s", Hosts: []string{"s"}, ValidFor: time.Nanosecond})
	must(t, err)
	if _, err := Load(Options{Dir: dir, Server: true, SanityCheck: true}); err == nil || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("error is %v", err)
	}
	if _, err := Load(Options{Dir: dir, Server: true}); err != nil {
		t.Errorf("without the check: %v", err)
	}
}

func remove(name string) func(string) error {
	return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
}

func put(name, text string) func(string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
}

func copyOver(from, to string) func(string) error {
	return func(dir string) error {
		text, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, to), text, 0o600)
	}
}

func both(one, two func(string) error) func(string) error {
	return func(dir string) error {
		if err := one(dir); err != nil {
			return err
		}
		return two(dir)
	}
}

// TestSubject holds the text against what QEMU printed of the same subjects.
func TestSubject(t *testing.T) {
	oid := func(n ...int) asn1.ObjectIdentifier { return n }
	for want, names := range map[string][]pkix.AttributeTypeAndValue{
		`C=GB,ST=Lon\"d\,on\ ,L=Lond#on,O=Exämple\+Org\<\>\=\;`: {{Type: oid(2, 5, 4, 6), Value: "GB"}, {Type: oid(2, 5, 4, 8), Value: `Lon"d,on `},
			{Type: oid(2, 5, 4, 7), Value: "Lond#on"}, {Type: oid(2, 5, 4, 10), Value: "Exämple+Org<>=;"}},
		`OU=\#a/b\\,CN=\ client.example.com`:    {{Type: oid(2, 5, 4, 11), Value: `#a/b\`}, {Type: oid(2, 5, 4, 3), Value: " client.example.com"}},
		`2.5.4.97=#13026f69,CN=x`:               {{Type: oid(2, 5, 4, 97), Value: "oi"}, {Type: oid(2, 5, 4, 3), Value: "x"}},
		`UID=u1,DC=dd,serialNumber=77,title=Tx`: {{Type: oid(0, 9, 2342, 19200300, 100, 1, 1), Value: "u1"}, {Type: oid(0, 9, 2342, 19200300, 100, 1, 25), Value: "dd"}, {Type: oid(2, 5, 4, 5), Value: "77"}, {Type: oid(2, 5, 4, 12), Value: "Tx"}},
	} {
		var sequence pkix.RDNSequence
		for _, n := range names {
			sequence = append(sequence, pkix.RelativeDistinguishedNameSET{n})
		}
		raw, err := asn1.Marshal(sequence)
		must(t, err)
		if got := Subject(&x509.Certificate{RawSubject: raw}); got != want {
			t.Errorf("subject is %s, want %s", got, want)
		}
	}
}

func TestRules(t *testing.T) {
	rules := Rules{List: []Rule{{Match: "CN=no*", Glob: true}, {Match: "CN=n*", Glob: true, Allow: true}, {Match: "CN=*", Allow: true}, {Match: "*,O=a?c,*x", Glob: true, Allow: true}}}
	for who, want := range map[string]bool{"CN=nobody": false, "CN=nab": true, "CN=*": true, "CN=x": false, "CN=y,O=abc,zx": true, "CN=y,O=ac,zx": false,
		"CN=y,O=ä,zx": false, "CN=y,O=aäc,x": true, "": false} {
		if rules.Allow(who) != want {
			t.Errorf("%q: %v", who, !want)
		}
		open := rules
		open.Otherwise = true
		if who == "CN=x" && !open.Allow(who) || who == "CN=nobody" && open.Allow(who) {
			t.Errorf("%q is treated wrong when others may come in", who)
		}
	}
}

func FuzzGlob(f *testing.F) {
	f.Add("a*b?c", "axxbyc")
	f.Add(strings.Repeat("*a", 30), strings.Repeat("a", 1000))
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if !glob([]rune("*"+text+"*"), []rune(text)) && !strings.ContainsAny(text, "*?") {
			t.Errorf("%q does not match itself", text)
		}
		glob([]rune(pattern), []rune(text))
	})
}
