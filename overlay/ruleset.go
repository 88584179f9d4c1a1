package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// tableName is our nftables table's, of family inet, in the host's namespace, in
// each tenant namespace and in each gateway.
const tableName = "particle"

// ruleset is the whole wanted content of the table.
type ruleset []chain

// chain without a hook is one that others go to.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    []rule
}

// fits says whether a chain found hangs where this one is to hang, and lets pass what
// no rule stops.
func (c chain) fits(have *nftables.Chain) bool {
	if c.hook == nil || have.Hooknum == nil {
		return c.hook == nil && have.Hooknum == nil
	}
	if have.Policy != nil && *have.Policy != nftables.ChainPolicyAccept {
		return false
	}
	return have.Type == c.kind && *have.Hooknum == *c.hook && *have.Priority == *c.priority
}

// rule is a sequence of matches that ends in a verdict. The note is shown by
// `nft list table`.
type rule struct {
	note  string
	exprs []expr.Any
}

func newRule(note string, parts ...[]expr.Any) rule {
	return rule{note: note, exprs: slices.Concat(parts...)}
}

func table(name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
}

func (n *namespace) firewall() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(n.fd()), nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	return conn, nil
}

// ensureRules makes the table of that name hold want. Rules that are there are left
// alone, with their handles; otherwise the table is filled in one transaction, so
// that no packet meets half of it.
func (n *namespace) ensureRules(name string, want ruleset) (changed bool, err error) {
	conn, err := n.firewall()
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.CloseLasting() }()
	state, err := inspect(conn, table(name), want)
	if err != nil || state == matching {
		return false, err
	}
	if state == unusable {
		conn.DelTable(table(name))
	}
	fill(conn, conn.AddTable(table(name)), want)
	if err := conn.Flush(); err != nil {
		return false, fmt.Errorf("fill nftables table %s: %w", name, err)
	}
	return true, nil
}

// fill puts chains and their rules into a table.
func fill(conn *nftables.Conn, in *nftables.Table, want ruleset) {
	for _, c := range want {
		add := &nftables.Chain{Name: c.name, Table: in, Type: c.kind, Hooknum: c.hook, Priority: c.priority}
		if c.hook != nil {
			add.Policy = new(nftables.ChainPolicyAccept)
		}
		made := conn.AddChain(add)
		conn.FlushChain(made)
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: in, Chain: made, Exprs: r.exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.note)})
		}
	}
}

// removeRules deletes a table; gone is success.
func (n *namespace) removeRules(name string) error {
	conn, err := n.firewall()
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseLasting() }()
	if found, err := findTable(conn, name); err != nil || found == nil {
		return err
	}
	conn.DelTable(table(name))
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables table %s: %w", name, err)
	}
	return nil
}

// findTable gives the table of that name, or nil.
func findTable(conn *nftables.Conn, name string) (*nftables.Table, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == name {
			return t, nil
		}
	}
	return nil, nil
}

type condition int

const (
	matching condition = iota
	lacking            // chains or rules are missing or others
	unusable           // a chain hangs on another hook, which cannot be changed, or is none of ours; or all sleep
)

// inspect compares a table with what is wanted.
func inspect(conn *nftables.Conn, in *nftables.Table, want ruleset) (condition, error) {
	switch found, err := findTable(conn, in.Name); {
	case err != nil || found == nil:
		return lacking, err
	case found.Flags != 0: // such as dormant: its chains hang nowhere
		return unusable, nil
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return lacking, fmt.Errorf("list nftables chains: %w", err)
	}
	chains = slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name != in.Name })
	for _, c := range chains { // such as an earlier version's
		if !slices.ContainsFunc(want, func(w chain) bool { return w.name == c.Name }) {
			return unusable, nil
		}
	}
	state := matching
	for _, w := range want {
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Name == w.name })
		if i < 0 {
			state = max(state, lacking)
			continue
		}
		have := chains[i]
		if !w.fits(have) {
			return unusable, nil
		}
		rules, err := conn.GetRules(in, have)
		if err != nil {
			return lacking, fmt.Errorf("list nftables rules: %w", err)
		}
		same := func(have *nftables.Rule, want rule) bool { return reflect.DeepEqual(have.Exprs, want.exprs) }
		if !slices.EqualFunc(rules, w.rules, same) {
			state = max(state, lacking)
		}
	}
	return state, nil
}

// What follows are the words rules are made of. Each leaves register 1 free.

// link matches the name of the link a packet came in or goes out by; a final
// asterisk stands for any ending.
func link(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	text, wild := strings.CutSuffix(name, "*")
	data := []byte(text)
	if !wild {
		data = append(data, make([]byte, unix.IFNAMSIZ-len(text))...)
	}
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}
}

func from(name string) []expr.Any    { return link(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func notFrom(name string) []expr.Any { return link(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func to(name string) []expr.Any      { return link(expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }
func notTo(name string) []expr.Any   { return link(expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }

// bridgeKind is the kind of bridges, as `ip link show type bridge` has it.
const bridgeKind = "bridge"

// NFT_META_IIFKIND and NFT_META_OIFKIND of linux/netfilter/nf_tables.h (Linux 5.1),
// which the library has no names for.
const (
	metaIIFKind expr.MetaKey = 26
	metaOIFKind expr.MetaKey = 27
)

// fromKind matches a packet that came in by a link of a kind.
func fromKind(kind string) []expr.Any { return link(metaIIFKind, expr.CmpOpEq, kind) }

// toKind matches a packet that goes out by a link of a kind. A link without one,
// such as a network card, matches none.
func toKind(kind string) []expr.Any { return link(metaOIFKind, expr.CmpOpEq, kind) }

// conntrack matches any of the bits of a key of the packet's connection.
func conntrack(key expr.CtKey, op expr.CmpOp, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)},
	}
}

// answers matches packets of connections begun on the other side.
func answers() []expr.Any {
	return conntrack(expr.CtKeySTATE, expr.CmpOpNeq, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// notPublished matches connections whose destination was not rewritten
// (IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h).
func notPublished() []expr.Any {
	return conntrack(expr.CtKeySTATUS, expr.CmpOpEq, 1<<5)
}

func family(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}

// field is an address in an IP header.
type field struct {
	in4, in6 uint32 // its offset (RFC 791, RFC 8200)
}

var (
	source      = field{in4: 12, in6: 8}
	destination = field{in4: 16, in6: 24}
)

// inRange matches packets of the range's IP version whose address lies in it.
func inRange(f field, p netip.Prefix) []expr.Any { return compare(f, expr.CmpOpEq, p) }

// notInRange matches packets of the range's IP version whose address does not.
func notInRange(f field, p netip.Prefix) []expr.Any { return compare(f, expr.CmpOpNeq, p) }

func compare(f field, op expr.CmpOp, p netip.Prefix) []expr.Any {
	proto, offset := byte(unix.NFPROTO_IPV4), f.in4
	if p.Addr().Is6() {
		proto, offset = unix.NFPROTO_IPV6, f.in6
	}
	mask := []byte(ipNet(p).Mask)
	size := uint32(len(mask))
	return append(family(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	)
}

// discovery matches the messages of IPv6 by which routers and neighbours make
// themselves known, and redirects (RFC 4861 section 4: types 133 to 137).
func discovery() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{133}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{137}},
	}
}

// udpTo matches a UDP destination port.
func udpTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// strayed matches a source that the host would not reach by the link the packet
// came in by (reverse path filter).
func strayed() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
	}
}

// notOwn matches a destination that is no address of the link the packet came
// in by.
func notOwn() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, FlagIIF: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func accept() []expr.Any     { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any       { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func notrack() []expr.Any    { return []expr.Any{&expr.Notrack{}} }
func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }
