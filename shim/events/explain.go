package events

import (
	"fmt"
	"strings"

	"github.com/declarun/declarun/shim/record"
)

// Remedy is what to do when the deviation was meant to be: where it is declared.
func Remedy(d record.Dimension, action, object string) string {
	switch d {
	case record.Syscalls:
		return fmt.Sprintf("if the image needs %s, its programs must contain the call or be named by ENTRYPOINT, CMD or a script; to see without refusing, run with mode syscalls=audit", action)
	case record.Processes:
		if action == "exec" {
			return "an operator's exec is allowed and recorded; nothing to do if it was yours"
		}
		return fmt.Sprintf("if %s belongs to the service, name it in ENTRYPOINT, CMD, HEALTHCHECK or a script of the image; to see without refusing, run with mode processes=audit", orThis(object))
	case record.Storage:
		return fmt.Sprintf("if %s is to be written, declare it: VOLUME in the Dockerfile, or -v / --tmpfs on the run command", orThis(object))
	case record.Network:
		if action == "listen" {
			port := object
			if _, after, ok := strings.Cut(object, "/"); ok {
				port = after
			}
			return fmt.Sprintf("if the service is to be reached there, declare it: EXPOSE %s in the Dockerfile, or -p / --expose on the run command", port)
		}
		return fmt.Sprintf("if the service is to talk to %s, declare it: the compose file, or an environment variable that names it", orThis(object))
	case record.Admission:
		return "change the Dockerfile as the reason says, or set mode admission=audit"
	}
	if action == "lost" {
		return "look at the container: declarun status; what is refused is refused whether it is written or not"
	}
	return ""
}

// LoopRemedy is what to do when a program does need a call while it serves that
// was taken away from its processes in their service loop.
func LoopRemedy(program string) string {
	return fmt.Sprintf("declarun plan --why shows where the call was found; if %s does make it while it serves, please report that as a bug and run with mode syscalls=audit", orThis(program))
}

func orThis(object string) string {
	if object == "" {
		return "this"
	}
	return object
}

// Reason says in one sentence why something was stopped or reported.
func Reason(d record.Dimension, action, object string, v record.Verdict, p record.Phase) string {
	var what string
	switch d {
	case record.Syscalls:
		what = fmt.Sprintf("no program that the image declares makes the system call %s", action)
		if p == record.Serving {
			what += " once it serves"
		}
	case record.Processes:
		if action == "exec" {
			return fmt.Sprintf("somebody ran %s in the container", orThis(object))
		}
		what = fmt.Sprintf("nothing in the image declares that %s is run", orThis(object))
	case record.Storage:
		what = fmt.Sprintf("nothing declares %s writable", orThis(object))
	case record.Network:
		what = fmt.Sprintf("nothing declares %s %s", action, orThis(object))
	default:
		what = strings.TrimSpace(action + " " + object)
	}
	switch v {
	case record.Observed:
		return what + "; let through: the mode is audit"
	case record.Reported:
		return what + "; reported only"
	}
	return what
}
