// SPDX-License-Identifier: Apache-2.0

// Package credentials reads and makes the certificates and keys with which NBD peers prove who they are, and says who may
// come in.
//
// Credentials lie in a directory, under the names that QEMU gives them; one directory may serve both sides:
//
//	ca-cert.pem                       who signs certificates, one or several
//	ca-crl.pem                        certificates that count no more (optional)
//	server-cert.pem, server-key.pem   for a server
//	client-cert.pem, client-key.pem   for a client (optional, if the server does not ask for one)
//
// [Load] reads them once; what is on disk may change or go afterwards. From [X509] a server gets its configuration with
// [X509.Server], and a client with [X509.Client]. TLS is 1.2 or newer with the ciphers that Go holds safe.
//
// Who has a certificate is not yet who may come in: [Rules] decide by its subject.
//
// For those who have no certificates, [NewAuthority] makes an authority, whose key lies in ca-key.pem beside its certificate,
// and [Authority.Issue] what servers and clients need. The package watches no files.
package credentials
