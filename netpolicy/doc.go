// Package netpolicy holds a container to the network it declares: who may
// connect to it, and whom it may connect to.
//
// [Derive] works out ports and peers from what the image and the run command
// declare; [Rules] turns them into a ruleset, as plain data that prints in nft
// syntax; [Apply] programs it into the container's network namespace as one
// table, "inet declarun", that the kernel holds alone from then on. [Watch]
// reports what the table refused and feeds the addresses of declared names.
//
// # Guarantees, where the plan says that the network is enforced
//
//   - Inbound: only declared ports, replies, ICMP errors about tracked flows,
//     and IPv6 neighbour discovery. Nothing is declared: nothing comes in.
//   - Outbound: only loopback, replies, the configured resolvers, declared peers
//     and neighbour discovery. A refused TCP connection is reset at once.
//   - Fragments, IPv6 extension headers, TCP Fast Open and Multipath TCP subflows
//     meet the same rules: conntrack reassembles before the rules run, the
//     transport header is found behind extension headers, and data in a SYN
//     travels in the SYN that is refused.
//   - The rules outlive the supervisor (owner and persist flags, Linux 6.9; on
//     older kernels the table persists without an owner). They vanish with the namespace.
//   - The engine's own tables are not touched.
//   - An address answered for a declared name is accepted before the answer
//     reaches the program that asked (where the kernel has NFQUEUE).
//
// # Not guaranteed
//
//   - Packet sockets (AF_PACKET) bypass netfilter: a container that keeps
//     CAP_NET_RAW is held only as far as its system calls are.
//   - CAP_NET_ADMIN in the container cannot alter the table while its owner
//     lives, but can rewrite packets after it (own chains, traffic control).
//     With CAP_NET_RAW root in the container can forge answers of an embedded
//     resolver on loopback, and so point a declared name at another address
//     (for the declared ports of that name only).
//   - Resolvers answer for every name, so a name nobody declares can be looked
//     up, and data can leave in the question.
//   - Between processes of one namespace, on loopback, nothing is filtered.
//   - While no supervisor lives, no new address of a declared name is learnt;
//     those already known keep working.
//
// # Sources
//
// nft(8), nf_tables.h; libnetfilter_log and libnetfilter_queue message formats
// from linux/netfilter/nfnetlink_{log,queue}.h; sock_diag(7); RFC 1035 and RFC
// 2308 for DNS; RFC 4890 for which ICMPv6 a host must let through.
package netpolicy
