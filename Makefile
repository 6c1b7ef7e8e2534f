# SPDX-License-Identifier: Apache-2.0

GO        ?= go
FUZZTIME  ?= 10s
SEEDS     ?= 10000
BENCHTIME ?= 0.2s
BENCH     ?= --scale 0.1 --rounds 2
HISTORIES ?= 20
# Of `make torture`: rounds, or mirrors to cancel; when no more begin, or how long a soak is; rounds at once; rounds, cancel or soak.
COUNT     ?= 100
TIME      ?= 1h
JOBS      ?= 2
MODE      ?= rounds
# How long the tests of one package may take; the whole of `make test` takes a few minutes.
TIMEOUT   ?= 8m
# How long `make interop` may take in all, once the programs are there.
INTEROP_TIMEOUT ?= 20m

# Go's test runner, with what was skipped and why. Pipelines and loops need bash.
SHELL     := /bin/bash
.SHELLFLAGS := -o pipefail -c
test_run  := $(GO) run .ci/report.go -timeout $(TIMEOUT)
# Packages whose tests, or some of them, take too long for `make test` and ask for BLKMIRROR_INTEROP; those that exist are run.
interop   := daemon/browser daemon/guest daemon/hosts daemon/images daemon/packaging
# ST1005: error texts of QMP begin with a capital letter, as clients know them.
checks    := inherit,-ST1005

.DEFAULT_GOAL := help

.PHONY: help
help: ## explain every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## build bin/blkmirrord and bin/blkmirror, static
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/...

.PHONY: man
man: ## make the client's manual pages in bin/man, from its commands
	$(GO) test ./cmd/blkmirror -run '^TestManPages$$' -count=1 -args -man $(CURDIR)/bin/man

.PHONY: dist
dist: ## make archives and Debian packages for amd64 and arm64 in bin/dist, with checksums (ARCH=amd64 for one)
	@.dist/build bin/dist $(ARCH)

.PHONY: demo
demo: build ## mirror a disk under a writer, switch over, and check the copy; needs Go alone
	$(GO) run ./cmd/blkmirror-demo --daemon bin/blkmirrord

.PHONY: peers
peers: ## install the programs that tests set beside ours (Debian packages; needs root)
	@.ci/peers

.PHONY: test
test: peers ## run all tests, those with other programs included; says what it skips and why
	$(test_run) ./...

.PHONY: interop
interop: ## run the tests that need virtual machines or take minutes; installs more programs (INTEROP_TIMEOUT=20m)
	@.ci/peers interop
	BLKMIRROR_INTEROP=1 timeout -k 10 $(INTEROP_TIMEOUT) $(GO) test -v -count=1 -p 1 -timeout $(INTEROP_TIMEOUT) \
	    $(addprefix ./,$(wildcard $(interop)))

.PHONY: race
race: ## run all tests but those of the built binaries under the race detector
	$(test_run) -race $$($(GO) list ./... | grep -Ev '/daemon/(blackbox|browser|guest|hosts|images)$$')

.PHONY: invariants
invariants: ## run the tests of block layer and jobs with all invariants checked at every step
	$(test_run) -tags invariants ./block/... ./job/...

.PHONY: lint
lint: ## gofmt, go vet, staticcheck; govulncheck too where it is installed
	@files=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	    if [ -n "$$files" ]; then echo "gofmt would change:"; echo "$$files"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags invariants ./block/... ./job/...
	$(GO) tool staticcheck -checks $(checks) ./...
	@if command -v govulncheck >/dev/null; then govulncheck ./... || echo "govulncheck: see above (no part of the result)"; fi

.PHONY: vulncheck
vulncheck: ## look for known weaknesses in what the programs use (pinned govulncheck; says so where its database is out of reach)
	@.ci/vulncheck

.PHONY: conformance
conformance: ## run the recorded scenarios alone
	$(test_run) ./daemon/conformance -run TestScenarios

.PHONY: bench
bench: build ## measure the daemon beside its peers on PATH and in PEER_ROOT, about 5 minutes (BENCH='--scale 0.1 --rounds 2')
	bin/blkmirror-bench --daemon blkmirror=bin/blkmirrord --peers $(BENCH)

.PHONY: gobench
gobench: ## run the Go benchmarks once, shortly (BENCHTIME=0.2s)
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) ./...

.PHONY: fuzz
fuzz: ## run every fuzz target for a while (FUZZTIME=10s)
	@set -e; for file in $$(git ls-files '*_test.go' | xargs grep -l '^func Fuzz'); do \
	    for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$file); do \
	        echo "$$(dirname $$file) $$target"; \
	        $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$file); \
	    done; done

.PHONY: pictures
pictures: ## make the screenshots of docs/web.md again, with chromium
	BLKMIRROR_INTEROP=1 $(GO) test ./daemon/browser -count=1 -v -browser.pictures $(CURDIR)/docs/images

.PHONY: soak
soak: ## run the randomised mirror test with many seeds (SEEDS=10000)
	$(GO) test -tags invariants -run TestSchedules -timeout 0 ./job/mirror -v -schedules $(SEEDS) | grep -Ev '^(===|    --- PASS)'

.PHONY: torture
torture: build ## try to make the daemon lose data by real faults (SEED= of the first round, COUNT=100, TIME=1h, JOBS=2; MODE=cancel, MODE=soak)
	bin/blkmirror-torture $(MODE) --daemon bin/blkmirrord --count $(COUNT) --time $(TIME) --jobs $(JOBS) $(addprefix --seed ,$(SEED))

.PHONY: powerloss
powerloss: ## end daemon and host at any step, under the whole stack (SCHEDULES=10000, SEED= of the first)
	$(GO) test ./daemon/powerloss -count=1 -timeout 0 -v -powerloss.schedules=$(or $(SCHEDULES),10000) \
	    $(addprefix -powerloss.seed=,$(SEED)) | grep -Ev '^(===|    --- PASS)'

.PHONY: model
model: ## check the model of the mirror's concurrency, and that its mutations are noticed (spin, gcc)
	@docs/model/check

.PHONY: metamorphic
metamorphic: ## run histories of a disk, each under many sets of options (HISTORIES=20, from SEED=1 on)
	$(GO) test ./daemon/metamorphic -count=1 -timeout 0 -metamorphic.seed=$(or $(SEED),1) -metamorphic.seeds=$(HISTORIES) \
	    -metamorphic.sets=30 -metamorphic.shrink

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
