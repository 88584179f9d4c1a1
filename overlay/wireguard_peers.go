package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/topology"
)

// tunnels is what is known of the WireGuard device's peers.
type tunnels struct {
	guarded bool // there is, or will be, a device: the firewall has to be there, too
	// wanted are those that were asked for; nil if none ever were.
	wanted map[topology.WireGuardKey]topology.WireGuardPeer
	// told are the endpoints that this process has given the kernel. It learns newer
	// ones from packets that have proved to be the peer's, and those stay.
	told map[topology.WireGuardKey]netip.AddrPort
}

// SetWireGuardPeers says which hosts are at the other ends. Each may use its own
// tunnel address and no other; of no others' packets any are taken. Until it is
// called those hold that the kernel has from before. Without the device, it is
// for the next ApplyWireGuard to carry out.
func (h *Host) SetWireGuardPeers(ctx context.Context, peers []topology.WireGuardPeer) error {
	const op = "set peers of WireGuard"
	wanted := map[topology.WireGuardKey]topology.WireGuardPeer{}
	for _, p := range peers {
		if _, twice := wanted[p.Key]; twice || !topology.WireGuardRange.Contains(p.Address) {
			return &fault.Error{Op: op, On: p.Address.String(), Err: errors.New("its key is another's, or that is no tunnel address"),
				Fix: "have that host leave the cluster and join again"}
		}
		wanted[p.Key] = p
	}
	release, err := h.write(ctx)
	if err != nil {
		return err
	}
	defer release()
	h.tunnels.wanted = wanted
	link, err := h.root.find(wireGuardName)
	if err == nil && link != nil {
		_, err = h.ensureTunnels(wireguard.End{})
	}
	if err != nil {
		return &fault.Error{Op: op, Err: err, Fix: "run `wg show " + wireGuardName + "` on this host"}
	}
	return nil
}

// ensureTunnels gives the device its key and port, if w has any, and the wanted
// peers.
func (h *Host) ensureTunnels(w wireguard.End) (changed bool, err error) {
	err = enter(h.root.file, func() error {
		client, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer client.Close()
		have, err := client.Device(wireGuardName)
		if err != nil {
			return fmt.Errorf("read %s: %w", wireGuardName, err)
		}
		config := wgtypes.Config{Peers: h.tunnels.changes(have.Peers)}
		if w.Secret.Valid() && topology.WireGuardKey(have.PublicKey) != w.Secret.Public() {
			config.PrivateKey = (*wgtypes.Key)(new(w.Secret.Bytes()))
		}
		if w.Port != 0 && have.ListenPort != int(w.Port) {
			config.ListenPort = new(int(w.Port))
		}
		changed = len(config.Peers) > 0 || config.PrivateKey != nil || config.ListenPort != nil
		if !changed {
			return nil
		}
		err = client.ConfigureDevice(wireGuardName, config)
		if errors.Is(err, unix.EADDRINUSE) {
			return portTaken()
		}
		return err
	})
	if err != nil {
		h.tunnels.told = nil
		return changed, err
	}
	h.tunnels.told = map[topology.WireGuardKey]netip.AddrPort{}
	for key, p := range h.tunnels.wanted {
		h.tunnels.told[key] = p.Endpoint
	}
	return changed, nil
}

// changes lead from the peers that the kernel has to those wanted.
func (t tunnels) changes(have []wgtypes.Peer) (list []wgtypes.PeerConfig) {
	if t.wanted == nil {
		return nil
	}
	there := map[topology.WireGuardKey]wgtypes.Peer{}
	for _, p := range have {
		key := topology.WireGuardKey(p.PublicKey)
		there[key] = p
		if _, ok := t.wanted[key]; !ok {
			list = append(list, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true})
		}
	}
	for key, p := range t.wanted {
		found, ok := there[key]
		told := ok && (!p.Endpoint.IsValid() || t.told[key] == p.Endpoint && found.Endpoint != nil)
		if told && permits(found, p.Address) && found.PresharedKey == (wgtypes.Key{}) {
			continue
		}
		change := wgtypes.PeerConfig{
			PublicKey: wgtypes.Key(key), PresharedKey: &wgtypes.Key{},
			ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{*ipNet(netip.PrefixFrom(p.Address, p.Address.BitLen()))},
		}
		if !told && p.Endpoint.IsValid() {
			change.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint)
		}
		list = append(list, change)
	}
	return list
}

// permits says whether a peer may use an address and no other.
func permits(p wgtypes.Peer, addr netip.Addr) bool {
	return len(p.AllowedIPs) == 1 && prefix(&p.AllowedIPs[0]) == netip.PrefixFrom(addr, addr.BitLen())
}
