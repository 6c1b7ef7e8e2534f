// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"strings"
	"unicode/utf16"
)

// attributeNames are those of the parts of a distinguished name, as operators of QEMU know them.
var attributeNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.4": "surName", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
	"2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.13": "description",
	"2.5.4.15": "businessCategory", "2.5.4.17": "postalCode", "2.5.4.41": "name", "2.5.4.42": "givenName",
	"2.5.4.43": "initials", "2.5.4.44": "generationQualifier", "2.5.4.46": "dnQualifier", "2.5.4.65": "pseudonym",
	"0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC", "1.2.840.113549.1.9.1": "EMAIL",
	"1.3.6.1.4.1.311.60.2.1.1": "jurisdictionOfIncorporationLocalityName",
	"1.3.6.1.4.1.311.60.2.1.2": "jurisdictionOfIncorporationStateOrProvinceName",
	"1.3.6.1.4.1.311.60.2.1.3": "jurisdictionOfIncorporationCountryName",
}

type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

type attributesSET []attribute // the ending tells package asn1 that it is a set

// Subject is who a certificate is about, in the form in which authorisation rules name it: the parts of the distinguished
// name in the order of the certificate, such as "C=GB,O=Example Org,CN=laptop.example.com". In values, a backslash stands
// before , + " \ < > ; and =, before # and a blank at the beginning, and before a blank at the end.
func Subject(cert *x509.Certificate) string {
	var name []attributesSET
	if rest, err := asn1.Unmarshal(cert.RawSubject, &name); err != nil || len(rest) > 0 {
		return "" // a certificate with such a subject is not parsed in the first place
	}
	var b strings.Builder
	for i, set := range name {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, a := range set {
			if j > 0 {
				b.WriteByte('+')
			}
			writeAttribute(&b, a)
		}
	}
	return b.String()
}

func writeAttribute(b *strings.Builder, a attribute) {
	oid := a.Type.String()
	text, ok := textOf(a.Value)
	if name := attributeNames[oid]; name != "" && ok {
		b.WriteString(name + "=")
		writeEscaped(b, text)
		return
	}
	b.WriteString(oid + "=#" + hex.EncodeToString(a.Value.FullBytes))
}

// textOf is the text of a value of one of the types of strings.
func textOf(v asn1.RawValue) (string, bool) {
	if v.Class != asn1.ClassUniversal {
		return "", false
	}
	switch v.Tag {
	case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String, asn1.TagNumericString, asn1.TagT61String:
		return string(v.Bytes), true
	case asn1.TagBMPString:
		var units []uint16
		for i := 0; i+1 < len(v.Bytes); i += 2 {
			units = append(units, uint16(v.Bytes[i])<<8|uint16(v.Bytes[i+1]))
		}
		return string(utf16.Decode(units)), len(v.Bytes)%2 == 0
	}
	return "", false
}

func writeEscaped(b *strings.Builder, text string) {
	for i := range len(text) {
		c := text[i]
		if strings.IndexByte(`,+"\<>;=`, c) >= 0 || i == 0 && (c == '#' || c == ' ') || i == len(text)-1 && c == ' ' {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
}
