package plan

import (
	"reflect"
	"testing"

	"github.com/declarun/declarun/shim/record"
)

func TestExpected(t *testing.T) {
	from := func(s record.Source, at string) []record.Origin { return []record.Origin{{Source: s, At: at}} }
	p := &Plan{Processes: []Process{
		{Path: "/entry:1.sh", Identity: record.Application, Phase: record.Starting, Origins: from(record.FromImage, "config.Entrypoint")},
		{Path: "/bin/dash", Identity: record.Application, Phase: record.Starting, Origins: from(record.FromScript, "/entry:1.sh:1")},
		{Path: "/usr/bin/db", Identity: record.Application, Phase: record.Serving, Main: true, Origins: append(from(record.FromScript, "/entry:1.sh:12"), from(record.FromFile, "/usr/bin/db")...)},
		{Path: "/usr/bin/helper", Identity: record.Application, Phase: record.Serving, Origins: from(record.FromFile, "/usr/bin/db+0x40")},
		{Path: "/lib/ld.so", Identity: record.Application, Loader: true, Origins: from(record.FromFile, "/usr/bin/db")},
		{Path: "/bin/isready", Identity: record.HealthCheck, Phase: record.Serving, Origins: from(record.FromImage, "config.Healthcheck")},
	}}
	want := []Expected{
		{Path: "/entry:1.sh", Identity: record.Application, Phase: record.Starting, Root: true, Starts: []string{"/bin/dash", "/usr/bin/db"}},
		{Path: "/bin/dash", Identity: record.Application, Phase: record.Starting},
		{Path: "/usr/bin/db", Identity: record.Application, Phase: record.Serving, Main: true, Starts: []string{"/usr/bin/helper"}},
		{Path: "/usr/bin/helper", Identity: record.Application, Phase: record.Serving},
		{Path: "/bin/isready", Identity: record.HealthCheck, Phase: record.Serving, Root: true},
	}
	if got := p.Expected(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	for _, row := range []struct {
		claim, exe string
		id         record.Identity
		phase      record.Phase
		want       string
	}{
		{"a program of the plan", "/usr/bin/db", record.Application, record.Serving, ""},
		{"nobody's", "/bin/nc", record.Application, record.Starting, "not in the plan"},
		{"a shell while it starts", "/bin/dash", record.Application, record.Starting, ""},
		{"a shell later", "/bin/dash", record.Application, record.Serving, "only while starting, and the container serves"},
		{"the health check's, by the application", "/bin/isready", record.Application, record.Serving, "only for the health check"},
		{"the health check's", "/bin/isready", record.HealthCheck, record.Serving, ""},
		{"the health check may what the application may", "/usr/bin/db", record.HealthCheck, record.Serving, ""},
		{"an operator's", "/bin/nc", record.Operator, record.Serving, ""},
		{"what is not known is not unexpected", "", record.Application, record.Serving, ""},
		{"nobody in particular is the application", "/bin/isready", "", record.Serving, "only for the health check"},
	} {
		if got := p.Unexpected(row.exe, row.id, row.phase); got != row.want {
			t.Errorf("%s: %q, want %q", row.claim, got, row.want)
		}
	}
	p.WideStarting = true
	if got := p.Unexpected("/bin/nc", record.Application, record.Starting); got != "" {
		t.Errorf("wide while it starts: %q", got)
	}
	if got := p.Unexpected("/bin/nc", record.Application, record.Serving); got == "" {
		t.Error("wide while it starts, and it serves: nothing")
	}
}
