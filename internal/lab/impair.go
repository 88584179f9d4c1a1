package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// Impairment makes a host's underlay link a bad one.
type Impairment struct {
	Loss   float64       // percent of packets lost, in each direction; 0 to 100, to two decimals
	Delay  time.Duration // added to packets towards the host: the round trip grows by as much
	Jitter time.Duration // random part of Delay, plus or minus
}

// lossUnits is the resolution of Loss: hundredths of a percent.
const lossUnits = 10000

// Impair puts the host behind a link of that quality; the zero Impairment makes it
// perfect again, and so does a reboot. Losing packets takes nf_tables, delaying them
// takes the netem queueing discipline, which not every kernel has: the error says so,
// and nothing is changed then.
func (h *Host) Impair(i Impairment) error {
	if i.Loss < 0 || i.Loss > 100 || i.Delay < 0 || i.Jitter < 0 || i.Jitter > i.Delay {
		return fault.New("impair underlay", h.name, fmt.Sprintf("no such link: %+v", i), "give a loss of 0 to 100 percent and a jitter up to the delay")
	}
	err := h.atBridge(func(under *netlink.Handle, end netlink.Link) error { return delayPackets(under, end, i) }, "delay on")
	if err != nil {
		return err
	}
	if err := h.losePackets(i.Loss); err != nil {
		return &fault.Error{Op: "lose packets on underlay", On: h.name, Err: err, Fix: "use a kernel with nf_tables, egress hooks (5.16) and nft_numgen"}
	}
	return nil
}

// delayPackets sets the queueing discipline of the bridge's end.
func delayPackets(under *netlink.Handle, end netlink.Link, i Impairment) error {
	attrs := netlink.QdiscAttrs{LinkIndex: end.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if i.Delay == 0 {
		err := under.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "netem"})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			return nil // there was none of ours
		}
		return err
	}
	err := under.QdiscReplace(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{
		Latency: uint32(i.Delay.Microseconds()), Jitter: uint32(i.Jitter.Microseconds()), Limit: 100_000,
	}))
	if errors.Is(err, unix.ENOENT) {
		return fault.New("delay packets", "", "this kernel has no netem", "use a kernel with CONFIG_NET_SCH_NETEM or ask for loss only")
	}
	return err
}

// losePackets replaces the host's table of random drops. It stands at the bridge's
// end, where packets of other hosts and of the internet pass alike.
func (h *Host) losePackets(percent float64) error {
	ns, err := netns.GetFromPid(h.lab.internet.Pid())
	if err != nil {
		return err
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: "loss-" + h.name, Family: nftables.TableFamilyNetdev}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	if percent > 0 {
		conn.AddTable(table)
		addLoss(conn, table, "from", nftables.ChainHookIngress, h.name, percent)
		addLoss(conn, table, "to", nftables.ChainHookEgress, h.name, percent)
	}
	return conn.Flush()
}

func addLoss(conn *nftables.Conn, table *nftables.Table, name string, hook *nftables.ChainHook, device string, percent float64) {
	chain := conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityFilter, Device: device})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Numgen{Register: 1, Modulus: lossUnits, Type: unix.NFT_NG_RANDOM},
		// The number is in host order and comparisons are made byte by byte.
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, uint32(percent*lossUnits/100))},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
}
