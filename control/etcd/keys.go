package etcd

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/blocks"
	"github.com/particle-net/particle/topology"
)

// keys names what the store holds; it is the prefix of all of it, and ends in a
// slash.
type keys string

func (k keys) instance() string { return string(k) + "instance" }

// settling is there while hosts claim again what a store has forgotten that was
// set back; restored, of one network that it had forgotten altogether.
func (k keys) settling() string                     { return string(k) + "settling" }
func (k keys) restored(id topology.SharedID) string { return k.net(id) + "restored" }

func (k keys) nodes() string                      { return string(k) + "nodes/" }
func (k keys) node(id topology.NodeID) string     { return k.nodes() + string(id) + "/" }
func (k keys) info(id topology.NodeID) string     { return k.node(id) + "info" }
func (k keys) alive(id topology.NodeID) string    { return k.node(id) + "alive" }
func (k keys) lost(id topology.NodeID) string     { return k.node(id) + "lost" }
func (k keys) specs() string                      { return string(k) + "specs/" }
func (k keys) spec(id topology.SharedID) string   { return k.specs() + string(id) }
func (k keys) vni(v topology.VNI) string          { return fmt.Sprintf("%svnis/%06x", string(k), uint32(v)) }
func (k keys) name(name string) string            { return string(k) + "names/" + name }
func (k keys) nets() string                       { return string(k) + "nets/" }
func (k keys) net(id topology.SharedID) string    { return k.nets() + string(id) + "/" }
func (k keys) blocks(id topology.SharedID) string { return k.net(id) + "blocks/" }
func (k keys) addrs(id topology.SharedID) string  { return k.net(id) + "addrs/" }
func (k keys) freed(id topology.SharedID) string  { return k.net(id) + "freed/" }

func (k keys) block(id topology.SharedID, p netip.Prefix) string {
	return k.blocks(id) + hexBlock(p)
}

func (k keys) addr(id topology.SharedID, a netip.Addr) string {
	return k.addrs(id) + hexAddr(a)
}

// claim is the key of a block or of a single address.
func (k keys) claim(id topology.SharedID, p netip.Prefix) string {
	if p.IsSingleIP() {
		return k.addr(id, p.Addr())
	}
	return k.block(id, p)
}

func (k keys) tombstone(id topology.SharedID, p netip.Prefix) string {
	return k.freed(id) + hexBlock(p)
}

// hexAddr sorts as addresses do. The family goes before the digits: without it
// the range of the IPv4 addresses 32.1.13.0 to 32.1.13.255 would hold the IPv6
// addresses of 2001:d00::/24 too.
func hexAddr(a netip.Addr) string {
	if a.Is4() {
		return "4-" + hex.EncodeToString(a.AsSlice())
	}
	return "6-" + hex.EncodeToString(a.AsSlice())
}

func hexBlock(p netip.Prefix) string {
	return hexAddr(p.Addr()) + "-" + strconv.Itoa(p.Bits())
}

// parsePrefix reads what hexAddr or hexBlock wrote.
func parsePrefix(s string) (netip.Prefix, bool) {
	_, rest, _ := strings.Cut(s, "-")
	digits, length, isBlock := strings.Cut(rest, "-")
	raw, err := hex.DecodeString(digits)
	addr, ok := netip.AddrFromSlice(raw)
	if err != nil || !ok {
		return netip.Prefix{}, false
	}
	if !isBlock {
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	bits, err := strconv.Atoi(length)
	if err != nil {
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(addr, bits)
	return p, p.IsValid()
}

// parseClaim reads the key of a claim of any network.
func (k keys) parseClaim(key string) (id topology.SharedID, p netip.Prefix, ok bool) {
	return k.parseKey(key, "blocks", "addrs")
}

// parseKey reads one of a prefix below nets, if it is of one of the kinds.
func (k keys) parseKey(key string, kinds ...string) (id topology.SharedID, p netip.Prefix, ok bool) {
	rest, ok := strings.CutPrefix(key, k.nets())
	parts := strings.Split(rest, "/")
	if !ok || len(parts) < 3 || !slices.Contains(kinds, parts[1]) {
		return "", netip.Prefix{}, false
	}
	p, ok = parsePrefix(parts[2])
	return topology.SharedID(parts[0]), p, ok
}

// holding is the value of a claim: whose it is, and where its addresses are
// reached.
type holding struct {
	Node   topology.NodeID
	VTEP   netip.Addr
	MAC    net.HardwareAddr `json:",omitempty"`
	Port   uint16           `json:",omitempty"`
	Holder string           `json:",omitempty"`
	// Op tells apart the attempts of one host: after an answer that was lost, the
	// same number in the store says that the attempt had gone through.
	Op string `json:",omitempty"`
}

// identity is the value of the instance key.
type identity struct {
	UUID       string
	Encryption topology.Encryption `json:",omitempty"` // of all hosts, as the first had it
}

// Comparisons that hold while a key is not there, or is as it was read.
func absent(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }

func unchanged(key string, mod int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", mod)
}

// noneUnder holds while no key has the prefix.
func noneUnder(prefix string) clientv3.Cmp { return absent(prefix).WithPrefix() }

// within is the range of the addresses of a block that are claimed by themselves.
func (k keys) within(id topology.SharedID, p netip.Prefix) (first, end string) {
	// The range ends before its last key, and no key sorts between one and the
	// same with a zero byte behind it.
	return k.addr(id, p.Masked().Addr()), k.addr(id, blocks.Last(p)) + "\x00"
}

// noneWithin holds while no address of the block is claimed by itself.
func (k keys) noneWithin(id topology.SharedID, p netip.Prefix) clientv3.Cmp {
	first, end := k.within(id, p)
	return absent(first).WithRange(end)
}

// onlyThese holds while a range has these keys, in order, as they were read, and no
// other. That none has changed since they were read would say less: a store that was
// set back has others, which are older.
func onlyThese(first, end string, found []*mvccpb.KeyValue) (cmps []clientv3.Cmp) {
	none := func(until string) {
		if first < until {
			cmps = append(cmps, absent(first).WithRange(until))
		}
	}
	for _, kv := range found {
		key := string(kv.Key)
		none(key)
		cmps = append(cmps, unchanged(key, kv.ModRevision))
		first = key + "\x00"
	}
	none(end)
	return cmps
}

func (h holding) route(id topology.SharedID, p netip.Prefix) control.Route {
	return control.Route{Network: id, Prefix: p, Node: h.Node, VTEP: h.VTEP, MAC: h.MAC, Port: h.Port}
}
