package runtime

import "slices"

// Command is one command for people: declarund's work, started under
// declarun's name.
type Command struct{ Name, Usage string }

// People lists the commands that are not runc's. A test holds it against
// runc's own list.
var People = []Command{
	{"plan", "print what a container may do and what declares it, before anything runs"},
	{"explain", "say why something was denied and what would declare it"},
	{"watch", "print deviations as they happen"},
	{"status", "list supervised containers"},
	{"tree", "show what runs in a container, next to what it is expected to run"},
	{"drift", "show what in a container's writable layer differs from its image"},
	{"doctor", "say what this kernel and engine can enforce, with remedies"},
	{"install", "make declarun known to docker or containerd"},
	{"uninstall", "undo install"},
	{"supervise", "run the supervisor (one per machine; started on first use)"},
}

func isForPeople(word string) bool {
	return slices.ContainsFunc(People, func(c Command) bool { return c.Name == word })
}
