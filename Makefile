# Everything a user or a contributor does starts here; `make` alone lists it.
# Needs: Go, make, git. The rest is installed when it is missing.

GO      ?= go
HOSTS   ?= 1
ENGINE  ?= debian
NAME    ?= lab
N       ?= 100
C       ?= 8
ROUNDS  ?= 5
JSON    ?= bench-start-$(ENGINE).json
GOTESTFLAGS ?=

PROGRAMS = particle particle-docker-plugin particle-runtime
BUILD = CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- use ---------------------------------------------------------------------

.PHONY: demo
demo: build ## 100 containers on host mode, Docker's bridge and a particle network, side by side
	$(GO) run ./bench/start -demo -engine $(ENGINE)

.PHONY: install
install: build ## install into the engine at $DOCKER_HOST, or the local one
	bin/particle install

.PHONY: uninstall
uninstall: build ## take it out again
	bin/particle uninstall

.PHONY: lab
lab: build ## boot Docker hosts in namespaces of this machine (HOSTS=n ENGINE=debian|current NAME=lab)
	bin/particle-lab up --name $(NAME) --hosts $(HOSTS) --engine $(ENGINE)
	bin/particle-lab image --name $(NAME) $$(seq -f h%.0f $(HOSTS))

.PHONY: lab-down
lab-down: build ## take them down and leave nothing (NAME=lab)
	bin/particle-lab down --name $(NAME)

.PHONY: build
build: ## the programs, in bin/
	$(BUILD) $(PROGRAMS:%=./cmd/%) ./cmd/particle-lab ./cmd/particle-vm

.PHONY: generate
generate: packages ## the eBPF objects from their C, after it was changed
	$(GO) generate ./addrguard

# --- measure -----------------------------------------------------------------

.PHONY: bench-start
bench-start: build ## start-up times as a table and JSON (N= C= ROUNDS= ENGINE= JSON=)
	$(GO) run ./bench/start -engine $(ENGINE) -n $(N) -c $(C) -rounds $(ROUNDS) -json $(JSON)

.PHONY: bench-network
bench-network: ## the network's part alone, beside the paper's baseline and today's best
	$(GO) run ./bench/network

.PHONY: bench-overlay
bench-overlay: ## containers of two hosts, beside plain VXLAN, Swarm's overlay and the underlay (root; ROUNDS= ENGINE=)
	$(GO) run ./bench/overlay -engine $(ENGINE) -rounds $(ROUNDS)

.PHONY: bench-guard
bench-guard: ## socket calls with the address guard, as ratios to none (root)
	$(GO) test ./addrguard -run '^$$' -bench .

.PHONY: bench-calls
bench-calls: ## plugin calls of one container's start, with 0 and 10,000 endpoints
	GOGC=400 TMPDIR=/dev/shm $(GO) test ./fabric -run '^$$' -bench Connect -benchtime 10000x
	$(GO) test ./integration -run '^$$' -bench PluginCalls -benchtime 1x

.PHONY: bench-cluster
bench-cluster: ## three hosts: bursts on a shared network, and from a claim to the others' routes (root; ENGINE=)
	PARTICLE_ENGINES=$(ENGINE) $(GO) test ./integration -run '^$$' -bench 'Cluster|ClaimToRoute' -benchtime 1x -timeout 60m

# --- test --------------------------------------------------------------------

.PHONY: test
test: packages check ## all tests; installs what they need
	$(MAKE) -j 2 test-go engine
	$(MAKE) test-kernel
	$(MAKE) test-integration

# Built while other tests wait for time to pass: those that need it would all wait for it.
.PHONY: engine
engine: ## the current engine, from Go modules, unless it is there
	$(BUILD) ./cmd/particle-lab
	bin/particle-lab engine --engine current

# As the programs are built, so that nothing is compiled again for the checks.
check: export CGO_ENABLED = 0
check: export GOFLAGS = -trimpath
.PHONY: check
check: ## formatting, vet, lint, tidy
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w on these"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags clock,soak ./control/etcd ./integration
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff

# Packages whose tests boot hosts or change a kernel; all others need no rights
# beyond a user's, and a new one is among them without being named. Those that take
# longest come first.
KERNEL = internal/install internal/shim internal/lab addrguard overlay bench/start bench/network bench/overlay internal/holder seccomp/filter
PRODUCT = integration integration/probe
# Packages that are tested under other kernels than the machine's, too.
STOCK = seccomp/filter internal/holder overlay addrguard
KERNELS ?= 6.1 6.12
# What is tested where systemd makes the cgroups of containers.
SYSTEMD = TestScripts/.*/^(guard|occupied|servers|lifecycle|own|crash|plugin-down|systemd)$$|^TestAttack$$/.*/^(ordinary|exec)$$|^TestSocketTable$$
LONGEST = internal/membership control/etcd
OTHERS = $(LONGEST:%=%/) $(filter-out $(LONGEST:%=%/) $(KERNEL:%=%/) $(PRODUCT:%=%/) internal/vm/,$(patsubst github.com/particle-net/particle/%,%/,$(shell $(GO) list ./... | grep /particle/)))

.PHONY: test-go
test-go: ## pure and wire tests, with the race detector
	PARTICLE_REQUIRE=1 $(GO) test $(GOTESTFLAGS) -race -shuffle=on -count=1 -p 3 -timeout 60m $(OTHERS:%/=./%)

.PHONY: test-kernel
test-kernel: ## tests on real kernel namespaces and on single lab hosts (root)
	PARTICLE_REQUIRE=1 $(GO) test $(GOTESTFLAGS) -race -shuffle=on -count=1 -p 3 -parallel 4 -timeout 60m $(KERNEL:%=./%)

.PHONY: test-kernels
test-kernels: packages build engine ## in virtual machines (KERNELS="6.1 6.12"): what touches the kernel under Debian's stock kernels, Docker with systemd's cgroups of version 2, clusters that encrypt and whose clocks jump
	$(GO) test $(GOTESTFLAGS) -count=1 ./internal/vm
	@for k in $(KERNELS); do echo "Linux $$k"; PARTICLE_REQUIRE=wireguard $(GO) test $(GOTESTFLAGS) -count=1 -p 1 -timeout 60m \
		-exec '$(CURDIR)/bin/particle-vm -kernel '$$k' -timeout 60m' $(STOCK:%=./%) || exit 1; done
	$(BUILD) ./integration/probe ./integration/sockets
	CGO_ENABLED=0 GOARCH=386 $(GO) build -trimpath -ldflags "-s -w" -o bin/sockets386 ./integration/sockets
	PARTICLE_REQUIRE=wireguard PARTICLE_BUILT=$(CURDIR)/bin $(GO) test $(GOTESTFLAGS) -count=1 -run 'TestScripts/.*/cluster-(encrypted|clock)' -parallel 1 -timeout 60m \
		-exec '$(CURDIR)/bin/particle-vm -timeout 60m -memory 8000 -scratch /var/lib/particle-lab' ./integration
	PARTICLE_REQUIRE=wireguard PARTICLE_BUILT=$(CURDIR)/bin PARTICLE_ENGINES=debian $(GO) test $(GOTESTFLAGS) -count=1 -run '^TestAttack$$|^TestSocketTable$$' -parallel 1 -timeout 60m \
		-exec '$(CURDIR)/bin/particle-vm -timeout 60m -memory 6000 -scratch /var/lib/particle-lab' ./integration
	PARTICLE_INIT=systemd PARTICLE_REQUIRE=1 PARTICLE_BUILT=$(CURDIR)/bin PARTICLE_ENGINES=debian $(GO) test $(GOTESTFLAGS) -count=1 -run '$(SYSTEMD)' -parallel 1 -timeout 90m \
		-exec '$(CURDIR)/bin/particle-vm -kernel 6.12 -timeout 90m -memory 6000 -scratch /var/lib/particle-lab' ./integration
	$(GO) test $(GOTESTFLAGS) -count=1 -tags clock -run TestClockJumps -timeout 60m -exec '$(CURDIR)/bin/particle-vm -timeout 60m' ./control/etcd

.PHONY: test-integration
test-integration: ## the product on both engines (root)
	PARTICLE_REQUIRE=1 CGO_ENABLED=0 $(GO) test -trimpath $(GOTESTFLAGS) -count=1 -timeout 120m -parallel 4 ./integration
	PARTICLE_REQUIRE=1 CGO_ENABLED=0 $(GO) test -trimpath $(GOTESTFLAGS) -count=1 ./integration/probe

.PHONY: soak
soak: packages engine ## all of clusters and each fault of them on each engine with each store, upgrades of etcd and from another version (FORMER=REVISION), a thousand containers (root; about an hour)
	PARTICLE_REQUIRE=1 PARTICLE_FORMER=$(FORMER) CGO_ENABLED=0 $(GO) test -trimpath $(GOTESTFLAGS) -tags soak -count=1 -timeout 5h -parallel 4 \
		-run '^(TestCluster.*|TestBurstWrites|TestKillAtEveryCall|TestManyCycles)$$|^TestScripts$$/.*/^cluster' ./integration

.PHONY: test-attack
test-attack: ## one container against its neighbour, and what sockets do, on both engines (root)
	PARTICLE_REQUIRE=1 $(GO) test $(GOTESTFLAGS) -count=1 -timeout 30m -run 'TestAttack|TestSocketTable|TestScripts/.*/servers' ./integration

.PHONY: fuzz
fuzz: ## each fuzz target for a while (FUZZTIME=30s)
	@for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
		$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(or $(FUZZTIME),30s) $$p || exit 1; done; done

.PHONY: packages
packages: ## what the tests need from the distribution
	sh tools/packages.sh
