package site

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// ModeKey is the label or annotation by which an operator chooses a mode for a
// container; with "." and a dimension behind it, for that dimension alone.
const ModeKey = "io.declarun.mode"

// ErrRefused is the cause where the site refuses a container for what its
// operator asked.
var ErrRefused = errors.New("refused by this machine's configuration")

type refusal struct{ what, way string }

func (r *refusal) Error() string  { return r.what + ": " + ErrRefused.Error() }
func (r *refusal) Unwrap() error  { return ErrRefused }
func (r *refusal) Remedy() string { return r.way }

// EffectiveModes decides the mode of every dimension for one container: the
// site's, then the operator's word (his labels, then his annotations; the one
// for a dimension before the one for all). A mode given by the image is ignored.
// The error is a refusal, or an operator's word that cannot be understood.
func (c *Config) EffectiveModes(d *declared.Declared) (map[record.Dimension]record.Mode, []plan.Note, error) {
	modes := map[record.Dimension]record.Mode{}
	for _, dim := range record.Dimensions() {
		m := c.Modes[dim]
		if m == "" {
			m = record.Enforce
		}
		modes[dim] = m
	}
	var notes []plan.Note
	note := func(dim record.Dimension, format string, args ...any) {
		notes = append(notes, plan.Note{Dimension: dim, Text: fmt.Sprintf(format, args...)})
	}
	for _, key := range slices.Sorted(maps.Keys(d.Image.Labels)) {
		if _, own := d.Operator.Labels[key]; !own && isModeKey(key) {
			note(record.Supervision, "the image's own label %s=%s is ignored: an image does not choose how it is watched", short(key), short(d.Image.Labels[key]))
		}
	}
	unconfined := ""
	switch {
	case d.Operator.Privileged:
		unconfined = "--privileged"
	case d.Operator.Unconfined:
		unconfined = "seccomp=unconfined"
	}
	if unconfined != "" && !c.HonourUnconfined {
		return nil, nil, &refusal{"start with " + unconfined, "run the container without " + unconfined + ", or set honour-unconfined = true in " + DefaultPath}
	}
	if err := checkKeys(d); err != nil {
		return nil, nil, err
	}
	for _, dim := range record.Dimensions() {
		value, from := operatorMode(d, dim)
		if from == "" {
			continue
		}
		m, err := record.ParseMode(value)
		if err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", from, err)
		}
		if m.Strictness() < modes[dim].Strictness() && !c.AllowOverride {
			note(dim, "the operator's %s asks for %s; the site allows no weaker mode than %s", from, m, modes[dim])
			continue
		}
		if m != modes[dim] {
			note(dim, "mode %s by the operator's %s", m, from)
		}
		modes[dim] = m
	}
	if unconfined != "" {
		for _, dim := range unconfinedDimensions(d) {
			if modes[dim] == record.Enforce {
				modes[dim] = record.Audit
				note(dim, "mode audit: the operator asked for %s", unconfined)
			}
		}
	}
	return modes, notes, nil
}

// unconfinedDimensions: --privileged is about everything that runs, and
// seccomp=unconfined about system calls only. Admission still judges both.
func unconfinedDimensions(d *declared.Declared) []record.Dimension {
	if d.Operator.Privileged {
		return []record.Dimension{record.Syscalls, record.Processes, record.Storage, record.Network}
	}
	return []record.Dimension{record.Syscalls}
}

func isModeKey(key string) bool { return key == ModeKey || strings.HasPrefix(key, ModeKey+".") }

// operatorMode gives the operator's word on a dimension and where it stands.
func operatorMode(d *declared.Declared, dim record.Dimension) (value, from string) {
	for _, key := range []string{ModeKey + "." + string(dim), ModeKey} {
		if v, ok := d.Operator.Labels[key]; ok {
			return v, "label " + key
		}
		if v, ok := d.Annotations[key]; ok && !imageSays(d, key, v) {
			return v, "annotation " + key
		}
	}
	return "", ""
}

// imageSays guards against annotations made from an image's labels, whoever
// made the Declared.
func imageSays(d *declared.Declared, key, value string) bool {
	v, ok := d.Image.Labels[key]
	return ok && v == value
}

// checkKeys refuses io.declarun.mode.<nonsense>: a misspelt dimension must not
// look as if it had been heard.
func checkKeys(d *declared.Declared) error {
	for kind, set := range map[string]map[string]string{"label": d.Operator.Labels, "annotation": d.Annotations} {
		for key := range set {
			if dim, ok := strings.CutPrefix(key, ModeKey+"."); ok && !slices.Contains(record.Dimensions(), record.Dimension(dim)) {
				return fmt.Errorf("read %s %s: there is no dimension %q", kind, short(key), short(dim))
			}
		}
	}
	return nil
}

func short(s string) string {
	if len(s) > 100 {
		return strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}
