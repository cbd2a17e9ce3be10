package seccompgen

import (
	"strings"
	"testing"
)

func TestNumbersInScripts(t *testing.T) {
	perl, ruby, python := &languages[0], &languages[1], &languages[2]
	for _, row := range []struct {
		claim string
		lang  *language
		text  string
		calls string // that are allowed
		lines string // that are unresolved
	}{
		{"a constant of syscall.ph", perl, "require 'syscall.ph';\nsyscall(&SYS_getpid);\n", "getpid", ""},
		{"a constant of another package", perl, "syscall(&main::SYS_gettid, $x)", "gettid", ""},
		{"a constant that Linux does not have", perl, "syscall(&SYS_gethostname, $host, 65) == 0;", "", ""},
		{"a number", perl, "my $r = syscall 39;", "getpid", ""},
		{"a number in hexadecimal digits", perl, "my $r = syscall(0x27);", "getpid", ""},
		{"a variable", perl, "\nsyscall($nr, 1);", "", "2"},
		{"a variable behind CORE", perl, "CORE::syscall($nr, 1);", "", "1"},
		{"a function without brackets", perl, "syscall number(), 1;", "", "1"},
		{"a comment", perl, "  # syscall is preferred\n# syscall($x)", "", ""},
		{"a name of something else", perl, "require 'syscall.ph'; %syscall = (); $syscall = 1; $o->syscall($x); sub syscall { }; my_syscall($x);", "", ""},
		{"documentation", perl, "1;\n\n=head1 syscall\n\nsyscall($x)\n\n=cut\n\nprint 1;\n__END__\nsyscall($y)", "", ""},
		{"code behind documentation", perl, "\n=pod\n\nx\n\n=cut\n\nsyscall($y);", "", "8"},
		{"perl in a shell script", perl, "#!/bin/sh\nexec perl -e 'syscall($ARGV[0])'", "", "2"},
		{"Ruby, a number", ruby, "syscall 39", "getpid", ""},
		{"Ruby, a variable", ruby, "Kernel.syscall(nr)\nsyscall nr, 1", "", "1 2"},
		{"Ruby, by its name", ruby, "send(:syscall, nr)", "", "1"},
		{"Ruby, a method of something else", ruby, "foo.syscall(nr)\ndef syscall(x)\nend", "", ""},
		{"Python, a number", python, "libc.syscall(39)", "getpid", ""},
		{"Python, a converted number", python, "libc.syscall(ctypes.c_long(186))", "gettid", ""},
		{"Python, a variable", python, "libc.syscall(nr)", "", "1"},
		{"Python, the function itself", python, "f = libc.syscall\nf(39)", "", "1"},
	} {
		var out words
		new(loader).numbers("/s", []byte(row.text), row.lang, "amd64", &out, map[string]bool{})
		var calls, lines []string
		for _, c := range out.calls {
			calls = append(calls, c.Name)
		}
		for _, u := range out.unresolved {
			lines = append(lines, strings.Fields(u.Reason)[1])
		}
		if got := strings.Join(calls, " "); got != row.calls {
			t.Errorf("%s: calls %q, want %q", row.claim, got, row.calls)
		}
		if got := strings.Join(lines, " "); got != row.lines {
			t.Errorf("%s: unresolved in lines %q, want %q", row.claim, got, row.lines)
		}
	}
}

func FuzzNumbersInScripts(f *testing.F) {
	for _, s := range []string{"syscall(&SYS_getpid)", "=pod\nsyscall($x)\n=cut\nsyscall($y)", "__END__\nsyscall", "libc.syscall(", "\n\nsyscall 0x"} {
		f.Add([]byte(s), uint8(0))
	}
	f.Fuzz(func(t *testing.T, text []byte, lang uint8) {
		var out words
		new(loader).numbers("/s", text, &languages[int(lang)%len(languages)], "amd64", &out, map[string]bool{})
		if len(out.unresolved) > 100 || len(out.calls) > len(text)/len("syscall") {
			t.Errorf("%d bytes make %d calls and %d unresolved", len(text), len(out.calls), len(out.unresolved))
		}
		for _, u := range out.unresolved {
			if !strings.Contains(u.Reason, "line ") {
				t.Errorf("no line: %q", u.Reason)
			}
		}
	})
}
