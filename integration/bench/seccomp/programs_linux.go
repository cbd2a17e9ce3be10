package main

import (
	_ "embed"
	"fmt"
	"strings"

	"github.com/declarun/declarun/integration/observe"
)

// common are the packages that the programs are taken from, besides the base.
var common = strings.Fields(`acl attr bc binutils bsdextrautils bzip2 cpio curl dc diffutils dnsutils ed file findutils gawk gettext-base git gnupg gpgv groff-base hostname
	iproute2 iputils-ping jq keyutils kmod less libcap2-bin libxml2-utils lua5.4 m4 make man-db mawk moreutils nano netcat-openbsd openssl patch patchutils perl
	procps psmisc python3-minimal rsync socat sqlite3 strace time tree uchardet unzip util-linux-extra vim-tiny wget whois xxd xz-utils zip zstd
	e2fsprogs lsof openssh-client xsltproc dos2unix sharutils ncurses-bin libarchive-tools pv parallel lz4 lzip brotli redis-tools apache2-utils`)

var programsRoot = observe.Spec{Name: "programs", Packages: common}

//go:embed programs.txt
var programsText string

// rows are the command lines of programs.txt.
func rows() []string {
	var out []string
	for line := range strings.Lines(strings.ReplaceAll(programsText, "\\\n", "")) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			out = append(out, line)
		}
	}
	return out
}

// input is what rows find in /desk.
var input = func() map[string]string {
	var big, n strings.Builder
	for i := range 8000 {
		fmt.Fprintf(&big, "%d line %x of a larger file\n", i*7919%8000, i*i)
	}
	for i := range 12 {
		fmt.Fprintln(&n, i*37%11)
	}
	files := map[string]string{
		"f": "b a 1\na b 2\nc c 3\nb a 1\nümlaut x 4\n", "g": "a b 2\nb x 9\nc d 3\n", "n": n.String(), "big": big.String(),
		"d/a": "alpha\n", "d/b": "beta\n", "d/c/e": "", "pairs": "a b\nb c\n", "files": "f\ng\nd/a\n",
		"script.sed": "s/b/B/\n", "prog.awk": "{ n++ } END { print n }\n", "ed.txt": "1d\na\nnew\n.\nw\nq\n", "ed2.txt": "r !echo shell\nw out\nQ\n",
		"users.txt": "alice:pw:5001:5001::/tmp/alice:/bin/sh\n", "passwd.new": "root:x:0:0:root:/root:/bin/bash\n",
		"zone.txt": "Zone Lab 1:00 - LAB\n", "control": "Package: lab\nVersion: 1\nArchitecture: all\nMaintainer: n <a@b>\nDescription: test\n",
		"p.lua": "local t = {}\nfor i = 1, 10 do t[#t + 1] = i * i end\nprint(table.concat(t, ','), io.open('f'):read('a'))\n",
		"a.s":   ".globl _start\n_start: mov $60, %eax\n xor %edi, %edi\n syscall\n", "mk/in": "x\n", "mk/Makefile": "all: out\n\nout: in\n\tcp in out\n\techo $(shell date -u -d @0)\n\nclean:\n\trm -f out\n",
		"in.m4": "define(`X2', eval(X * 2))X2\nsyscmd(`echo sys')esyscmd(`echo esys')", "f.diff": "--- f\n+++ f\n@@ -1,2 +1,2 @@\n-b a 1\n+B a 1\n a b 2\n",
		"j.json": `{"a": 1, "b": [1, 2, 3]}`, "x.xml": "<?xml version='1.0'?><a><b>t</b></a>\n", "calc": "scale=10\n4*a(1)\n2^100\n", "calc2": "3+4\n", "hex": "616263\n", "q.sql": "select count(*) from t;\n",
		"s.xsl":       `<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"><xsl:template match="/"><xsl:value-of select="//b"/></xsl:template></xsl:stylesheet>`,
		"lesskey.txt": "#command\n\\e[A back-line\n", "t.roff": ".TH T 1\n.SH NAME\nt \\- test\n.PP\nText \\fBbold\\fP.\n", "term.src": "lab|lab terminal, am, cols#80, cr=^M,\n",
		"mail": "From: a\nTo: b\n\ntext\n", "http": "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nhi\n", "rs.conf": "use chroot = no\nuid = root\ngid = root\n[w]\npath = /desk\nread only = no\n",
	}
	out := map[string]string{}
	for name, text := range files {
		out["/desk/"+name] = text
	}
	return out
}()
