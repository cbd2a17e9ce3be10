package supervise

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/plan"
)

func TestParseStackPointer(t *testing.T) {
	for line, want := range map[string]uint64{
		"202 0x1 0x80 0x0 0x0 0x0 0x0 0x7ffd1000 0x7f0012": 0x7ffd1000,
		"-1 0x7ffd1000 0x7f0012":                           0x7ffd1000,
		"running":                                          0,
		"":                                                 0,
		"202 0x1 0x80":                                     0, // nobody prints that
		"202 0x1 0x80 0x0":                                 0,
		"1 2 3 4 5 6 7 zz 9":                               0,
	} {
		got, err := parseStackPointer(line)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %#x, %v", line, got, err)
		}
	}
}

func TestParseMapping(t *testing.T) {
	for line, want := range map[string]bool{
		"7f0000000000-7f0000021000 rw-p 00000000 00:00 0":                   true,
		"7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]":           true,
		"7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [anon:a thread]":   true,
		"7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [heap]":            false,
		"7ffd00000000-7ffd00021000 rw-s 00000000 00:01 7 /dev/zero":         false,
		"7ffd00000000-7ffd00021000 rw-s 00000000 00:00 0":                   false,
		"7ffd00000000-7ffd00021000 r--p 00000000 00:00 0":                   false,
		"7ffd00000000-7ffd00021000 rw-p 00000000 08:01 99 /lib/x [stack]":   false,
		"7ffd00000000-7ffd00021000 rw-p 00000000 08:01 99 [stack] (a file)": false,
	} {
		from, to, anonymous, err := parseMapping(line)
		if err != nil || anonymous != want || from >= to {
			t.Errorf("%q: %#x %#x %t %v", line, from, to, anonymous, err)
		}
	}
	for _, line := range []string{"", "x", "1-2", "2-1 rw-p 0 00:00 0", "zz-2 rw-p 0 00:00 0", "1 rw-p 0 00:00 0", "1-zz rw-p 0 00:00 0"} {
		if _, _, _, err := parseMapping(line); err == nil {
			t.Errorf("%q is a mapping", line)
		}
	}
}

func FuzzParseMapping(f *testing.F) {
	f.Add("7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]")
	f.Add("7ffd00000000-7ffd00021000 rw-p 00000000 08:01 99 /a file\\012 [stack]")
	f.Fuzz(func(t *testing.T, line string) {
		if from, to, _, err := parseMapping(line); err == nil && from >= to {
			t.Errorf("%#x %#x", from, to)
		}
		parseStackPointer(line)
	})
}

func TestReturns(t *testing.T) {
	const bias = 0x5555_0000_0000
	memory := make([]byte, 67)
	binary.NativeEndian.PutUint64(memory[56:], bias+0x2000)
	for _, row := range []struct {
		claim   string
		memory  []byte
		bias    uint64
		returns []uint64
		want    bool
	}{
		{"the last whole word", memory, bias, []uint64{0x1000, 0x2000, 0x3000}, true},
		{"cut before it", memory[:63], bias, []uint64{0x2000}, false},
		{"another bias", memory, bias + 8, []uint64{0x2000}, false},
		{"not at a word's place", memory[1:], bias, []uint64{0x2000}, false},
		{"between", memory, bias, []uint64{0x1000, 0x3000}, false},
		{"none", memory, bias, nil, false},
	} {
		if got := returns(row.memory, row.bias, row.returns); got != row.want {
			t.Errorf("%s: %t", row.claim, got)
		}
	}
}

func TestProgramOf(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenFile(dir, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	thirtyTwo := append([]byte{}, self[:4096]...)
	thirtyTwo[4] = 1
	swapped := append([]byte{}, self[:4096]...)
	swapped[5] ^= 3
	for name, data := range map[string][]byte{"good": self[:4096], "script": append([]byte("#!/bin/sh\n"), make([]byte, 100)...), "short": self[:63], "empty": nil, "32": thirtyTwo, "swapped": swapped} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600)
	os.Symlink("/good", filepath.Join(dir, "link"))
	os.Symlink("/proc/self/exe", filepath.Join(dir, "out"))
	for name, good := range map[string]bool{"/good": true, "/link": true, "/../good": true, "/script": false, "/short": false, "/empty": false,
		"/32": false, "/swapped": false, "/fifo": false, "/out": false, "/absent": false, "/": false, "": false} {
		p, err := programOf(root, plan.Loop{File: name, Returns: []uint64{9, 7, 8}})
		if (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
		if good && (p.Entry == 0 || p.ID.Ino == 0 || p.Returns[0] != 7) {
			t.Errorf("%q: %+v", name, p)
		}
	}
}
