// SPDX-License-Identifier: Apache-2.0

// Package packaging tests what is given to others: the files of .dist and docs/blkmirrord.service always; with
// BLKMIRROR_INTEROP set, as `make interop` does, also the archive and the Debian package that `make dist` makes.
//
// The package is installed by dpkg in a fresh root of Debian's own packages (debootstrap), used there as the unit and a person
// would, and removed again. systemd does not run in there: what it would do of the unit is done by the test.
//
// The package has nothing but tests.
package packaging
