// Package seccompgen works out, from ELF files alone, which system calls
// programs can make: nothing is run and no rule is written by hand.
//
// # How
//
// For every program: everything it loads (DT_NEEDED, the interpreter, preloads)
// and everything it may open by name; a call graph over all of it, from the
// entry point and initialisers, with every function whose address is taken by
// live code or lies in an object of data that live code can reach (objects.go);
// at every system call instruction that can be reached, the
// values its number register can hold, followed backwards through copies,
// branches, stack slots and, where the number is an argument, through callers
// in any file. Each file is summarised once per content and cached; so is the
// whole answer, which holds for every container in which all that was looked at
// is the same (sights.go).
//
// Libraries with more than 8 MiB of code (coarse.go) are not followed call by
// call: everything that such a library imports counts as used, and its own
// system calls are found by their bytes. That can allow more than the whole
// analysis would, never less.
//
// Files of x86-64 and AArch64 are analysed (machine.go); all of a container's
// programs must be for one of them. Of AArch64, every pointer in data counts as
// soon as its file is loaded, arguments of calls are not followed, nothing is
// told apart by phase, and no library is large enough to be taken as a whole.
//
// # Guarantees
//
// A call that reachable code makes with a number the analysis can prove is in
// Result.Calls. A reachable system call instruction whose number was not proved
// is in Result.Unresolved with the reason; none is dropped, apart from those
// listed in benign.go with their justification. Input is bounded: a hostile
// file makes an error or a useless answer, not a panic, and time is bounded by
// the context.
//
// # What is not seen
//
//   - Code made at run time (JIT compilers), or decoded from data (packers).
//   - Libraries named by strings that are put together at run time, unless they
//     lie below a directory whose path is in the program's data, or natives.go
//     knows them as an extension of the program by what they export or use.
//     Request.ExtraLibraries is for those.
//   - OPENSSL_CONF and the like, where a program sets it for another by a name that
//     it puts together, and is none of those that openssl.go names: then engines of
//     OpenSSL may be loaded that do not count. So may those that a file of options
//     names which a service writes for its own curl.
//   - What scripts that are not files of the image make an interpreter do beyond
//     its own code and extensions (scripts.go).
//   - dlsym of a function of an already loaded library by a name that is not a
//     string in the data of the file that calls dlsym, nor one of its own made
//     from such a string with one %s (strings.go). Where every call passes
//     constants (lookup.go), only those are looked up.
//   - That a priority of threads, a Sun RPC service or a profile is asked for by
//     nobody who uses the functions for it: what cannot be reached otherwise does
//     not count (gate.go).
//   - A stack slot changed through a pointer that was made from an address
//     outside the range that the slot's neighbourhood suggests: compilers keep
//     spilled values apart from variables whose address is taken.
//   - Of AArch64, an address of code whose two halves come together in different
//     functions, unless one jumps to the other.
//
// # Sources
//
// System V ABI for AMD64 and AAPCS64 (calling convention, what calls preserve),
// ELF for the Arm 64-bit Architecture (linkage table, relocations), ld.so(8) and
// musl's dynlink.c for where libraries are found, Go's internal ABI
// specification for arguments in registers, glibc's and musl's sources for the
// functions named in benign.go.
package seccompgen
