package install

import (
	_ "embed"
	"strings"
)

//go:embed declarun.service
var service string

//go:embed declarun.socket
var socket string

// Units are the systemd units by name, for a declarund at the absolute path
// program. They belong in /etc/systemd/system; then
// "systemctl daemon-reload" and "systemctl enable --now declarun.socket declarun.service".
func Units(program string) map[string]string {
	return map[string]string{
		"declarun.service": strings.ReplaceAll(service, "@DECLARUND@", quoteExec(program)),
		"declarun.socket":  socket,
	}
}

// quoteExec writes a path as one word of ExecStart= (systemd.service(5)).
func quoteExec(path string) string {
	path = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`, `$`, `$$`).Replace(path)
	if strings.ContainsAny(path, " \t'\";") {
		return `"` + path + `"`
	}
	return path
}
