# The two commands: "make demo" and "make test". Both set up what they need.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO      ?= go
PREFIX  ?= /usr/local
LDFLAGS  = -s -w -X github.com/declarun/declarun/shim/runtime.Version=$(VERSION)
# What the demo needs, and what tests need besides.
DEBIAN   = docker.io containerd runc debootstrap iproute2 iptables procps util-linux
TESTS    = nftables libseccomp-dev gcc libc6-dev binutils strace curl redis-tools apache2-utils bsdutils \
	nginx-light redis-server memcached gosu tini busybox-static git perl openssl \
	g++ python3 gunicorn python3-flask php-cli php-fpm nodejs ruby ruby-webrick openjdk-17-jdk-headless lua5.4 lua-socket erlang-base erlang-crypto \
	apache2 lighttpd bind9 bind9-dnsutils haproxy mariadb-server \
	libc6-dbg libbinutils-dbg libkrb5-dbg libgssapi-krb5-2 \
	qemu-user-static binutils-aarch64-linux-gnu gcc-aarch64-linux-gnu libc6-dev-arm64-cross

.PHONY: build install demo test lint bench bench-seccomp setup setup-test clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/declarun ./cmd/declarun
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/declarund ./cmd/declarund

install: build
	install -D -m 0755 bin/declarun $(DESTDIR)$(PREFIX)/bin/declarun
	install -D -m 0755 bin/declarund $(DESTDIR)$(PREFIX)/bin/declarund

# What tests and the demo need from Debian. Services that the packages bring
# are not started: a policy file forbids it while they are installed.
setup:
	@missing=""; for p in $(DEBIAN) $(EXTRA); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing:$$missing"; \
		had=0; [ -e /usr/sbin/policy-rc.d ] && had=1; \
		[ $$had = 1 ] || { printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; }; \
		apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing >/dev/null; status=$$?; \
		[ $$had = 1 ] || rm -f /usr/sbin/policy-rc.d; exit $$status; \
	fi

demo: setup
	$(GO) run ./integration/demo

setup-test:
	@$(MAKE) --no-print-directory setup EXTRA="$(TESTS)"

test: setup-test
	DECLARUN_REQUIRE=all $(GO) test -count=1 -timeout 35m ./...

lint:
	@test -z "$$(gofmt -l cmd shim seccompgen netpolicy procmap integration)" || { gofmt -l cmd shim seccompgen netpolicy procmap integration; exit 1; }
	$(GO) vet ./...

bench: setup-test
	$(GO) run ./integration/bench

# The bars of the system call analysis. PAYLOAD_DATA is a directory with lists of
# payloads that are no part of this project; PARTS leaves out others.
bench-seccomp: setup-test
	PAYLOAD_DATA='$(PAYLOAD_DATA)' $(GO) run ./integration/bench/seccomp $(PARTS)

# The base system and images that tests and the demo built are kept here.
CACHE ?= /var/cache/declarun-integration

clean:
	rm -rf bin $(CACHE)
