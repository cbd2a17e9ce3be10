package declared

import (
	"slices"
	"strings"
	"testing"
)

func TestParseInstruction(t *testing.T) {
	for _, row := range []struct{ createdBy, keyword, arguments string }{
		// classic builder, as Docker 20.10 wrote them
		{"/bin/sh -c #(nop)  EXPOSE 53/udp 5432 9000-9002", "EXPOSE", "53/udp 5432 9000-9002"},
		{"/bin/sh -c #(nop)  CMD [\"serve\" \"--fast\"]", "CMD", `["serve", "--fast"]`},
		{"/bin/sh -c #(nop)  ENTRYPOINT [\"/bin/app\"]", "ENTRYPOINT", `["/bin/app"]`},
		{"/bin/sh -c #(nop) COPY file:626d in /bin/sh ", "COPY", "file:626d in /bin/sh"},
		{"/bin/sh -c #(nop)  VOLUME [/data /cache]", "VOLUME", "/data /cache"},
		{"/bin/sh -c #(nop)  ENV PGDATA=/data LANG=C UTF", "ENV", "PGDATA=/data LANG=C UTF"},
		{`/bin/sh -c #(nop)  HEALTHCHECK &{["CMD-SHELL" "/bin/sh -c true || exit 1"] "30s" "0s" "0s" '\x00'}`, "HEALTHCHECK", "CMD /bin/sh -c true || exit 1"},
		{`/bin/sh -e -c #(nop)  HEALTHCHECK &{["NONE"] "0s" "0s" "0s" '\x00'}`, "HEALTHCHECK", "NONE"},
		{"/bin/sh -e -c #(nop)  SHELL [/bin/sh -e -c]", "SHELL", "/bin/sh -e -c"},
		{"/bin/bash -o pipefail -c #(nop)  USER app", "USER", "app"},
		{"/bin/sh -c apt-get update", "RUN", "apt-get update"},
		{"/bin/sh -e -c true", "RUN", "true"},
		{"/bin/bash -o pipefail -c curl x | sh", "RUN", "curl x | sh"},
		{"|1 FLAVOUR=vanilla /bin/sh -c apt-get install -y postgresql && echo \"a  b\"", "RUN", `apt-get install -y postgresql && echo "a  b"`},
		{"|2 A=b c D=/bin/x /bin/sh -c make", "RUN", "make"},
		{"/bin/sh -c echo child # a comment", "RUN", "echo child # a comment"},
		{"/bin/sh -c #(nop)  ONBUILD RUN echo child", "ONBUILD", "RUN echo child"},
		{"/bin/sh -c #(nop) ADD file:5c44a80f547b7d68b in / ", "ADD", "file:5c44a80f547b7d68b in /"},
		// BuildKit
		{"RUN /bin/sh -c apt-get update # buildkit", "RUN", "apt-get update"},
		{"RUN |1 V=1.2 /bin/sh -c set -eux; \tmake # buildkit", "RUN", "set -eux; \tmake"},
		{"EXPOSE map[5432/tcp:{}]", "EXPOSE", "5432/tcp"},
		{"EXPOSE map[443/tcp:{} 53/udp:{}]", "EXPOSE", "443/tcp 53/udp"},
		{"EXPOSE [5432/tcp]", "EXPOSE", "5432/tcp"},
		{"COPY app /bin/app # buildkit", "COPY", "app /bin/app"},
		{"VOLUME [/var/lib/postgresql/data]", "VOLUME", "/var/lib/postgresql/data"},
		{`ENTRYPOINT ["docker-entrypoint.sh"]`, "ENTRYPOINT", `["docker-entrypoint.sh"]`},
		{"WORKDIR /srv", "WORKDIR", "/srv"},
		{`HEALTHCHECK &{["CMD" "curl" "-f" "x"] "0s" "0s" "0s" "0s" '\x00'}`, "HEALTHCHECK", `CMD ["curl", "-f", "x"]`},
		// buildah
		{"/bin/sh -c #(nop) EXPOSE 80|unsetLabel=true|force-mtime=10", "EXPOSE", "80"},
		{`/bin/sh -c #(nop) CMD ["x"]|inheritLabels=false`, "CMD", `["x"]`},
		// kaniko
		{"RUN apt-get update", "RUN", "apt-get update"},
		{`RUN /bin/sh -c "make all"`, "RUN", `/bin/sh -c "make all"`},
		// neither
		{"", "", ""},
		{"-c sleep 3", "", "-c sleep 3"},
		{"bash", "", "bash"},
		{"add user 5", "", "add user 5"},
		{"# debian.sh --arch 'amd64' out/ 'bookworm' '@1690848000'", "", "# debian.sh --arch 'amd64' out/ 'bookworm' '@1690848000'"},
		{"bazel build //:image", "", "bazel build //:image"},
		// an instruction hidden in a command is no instruction
		{`/bin/sh -c echo "/bin/sh -c #(nop) EXPOSE 1"`, "RUN", `echo "/bin/sh -c #(nop) EXPOSE 1"`},
		{"RUN /bin/sh -c echo '#(nop) USER root' # buildkit", "RUN", "echo '#(nop) USER root'"},
	} {
		k, a := ParseInstruction(row.createdBy)
		if k != row.keyword || a != row.arguments {
			t.Errorf("%q: %q %q, want %q %q", row.createdBy, k, a, row.keyword, row.arguments)
		}
	}
}

func TestHistoryIsTiedToLayers(t *testing.T) {
	d, err := FromImageConfig([]byte(`{"architecture":"amd64","config":{"Cmd":["x"]},"rootfs":{"diff_ids":["sha256:a","sha256:b"]},
		"history":[{"created_by":"ADD a /"},{"created_by":"EXPOSE 1","empty_layer":true},{"created_by":"RUN b"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var layers []string
	for _, h := range d.Image.History {
		layers = append(layers, h.Layer)
	}
	if !slices.Equal(layers, []string{"sha256:a", "", "sha256:b"}) {
		t.Errorf("layers %q", layers)
	}
	d, err = FromImageConfig([]byte(`{"architecture":"amd64","config":{"Cmd":["x"]},"rootfs":{"diff_ids":["sha256:a"]},"history":[{"created_by":"ADD a /"},{"created_by":"RUN b"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if d.Image.History[0].Layer != "" || !strings.Contains(strings.Join(d.Missing, " "), "2 layers") {
		t.Errorf("a history that does not fit its layers is tied to them: %+v, %q", d.Image.History, d.Missing)
	}
}

func TestParseDockerfile(t *testing.T) {
	got, err := ParseDockerfile(strings.NewReader("# comment\nFROM debian:12 AS base\nRUN apt-get update && \\\n  apt-get install -y x\n\nEXPOSE 80\ncopy a\tb\nRUN <<EOF\necho hi\nEOF\n"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []int
	var keywords []string
	for _, i := range got {
		lines, keywords = append(lines, i.Line), append(keywords, i.Keyword)
	}
	if !slices.Equal(lines, []int{2, 3, 6, 7, 8}) || !slices.Equal(keywords, []string{"FROM", "RUN", "EXPOSE", "COPY", "RUN"}) {
		t.Errorf("lines %v keywords %v", lines, keywords)
	}
	if o := got[2].Origin(); o.At != "Dockerfile:6" || o.Text != "EXPOSE 80" {
		t.Errorf("origin %+v", o)
	}
	if !strings.Contains(got[4].Arguments, "echo hi") {
		t.Errorf("a here-document is lost: %q", got[4].Arguments)
	}
	if _, err := ParseDockerfile(strings.NewReader(strings.Repeat("RUN x\n", maxDockerfile/4))); err == nil {
		t.Error("a huge Dockerfile is read")
	}
}

func FuzzParseInstruction(f *testing.F) {
	for _, s := range []string{"/bin/sh -c #(nop)  EXPOSE 80", "|1 A=b /bin/sh -c x", "RUN /bin/sh -c x # buildkit", `HEALTHCHECK &{["CMD" "\x00`, "EXPOSE map[", "|99999 ", "CMD [\"a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, a := ParseInstruction(s)
		if k != strings.ToUpper(k) || len(a) > 2*maxInstruction {
			t.Errorf("%q %d", k, len(a))
		}
	})
}

func FuzzParseDockerfile(f *testing.F) {
	f.Add("FROM x\nRUN <<A <<B\na\nA\nb\nB\n")
	f.Add("# escape=`\nFROM x\nRUN a `\n b\n")
	f.Fuzz(func(t *testing.T, s string) { _, _ = ParseDockerfile(strings.NewReader(s)) })
}
