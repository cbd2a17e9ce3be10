package seccompgen

import (
	"context"
	"errors"
	"slices"

	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/rootfs"
)

// AfterStart gives the names of the calls that the one program of a request can
// make from when its main function is entered: not those that only the loader's
// own start and the initialisers of files that are there from the start make. It
// is false where that is not told apart (Go, static and fixed-address programs,
// other machines than amd64). No filter is made of it: a process does not show
// that it has entered main.
func AfterStart(ctx context.Context, root *rootfs.Root, req Request, cache Cache) ([]string, bool, error) {
	if len(req.Programs) != 1 {
		return nil, false, errors.New("tell the start of a program: want one program")
	}
	if cache == nil {
		cache = NoCache{}
	}
	r := newReader(root)
	st, out, err := settle(ctx, r, req, cache)
	if err != nil {
		return nil, false, err
	}
	l := newLoader(ctx, r, st, req.Env)
	defer st.wait()
	l.req, l.running = &req, &req.Programs[0]
	g, err := l.graph(req.Programs[0].Path, req.ExtraLibraries)
	if err != nil {
		return nil, false, err
	}
	p := newPhases(g)
	if p == nil || out.Machine != "amd64" {
		return nil, false, nil
	}
	p.base.mark(node{0, p.sum.Main})
	p.base.drain()
	var names []string
	for _, c := range out.Calls {
		nr, ok := sysno.Number(out.Machine, c.Name)
		if ok && p.base.nrs[int32(nr)] || slices.Contains(always, c.Name) {
			names = append(names, c.Name)
		}
	}
	return names, !p.base.bad, nil
}
