package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// WatchFilter calls lost when something may have taken away rules from our tables in
// the host's firewall, as `nft flush ruleset` does, which a restart of Debian's
// nftables.service is: until they are there again the host believes who should not be
// believed. RepairMembers looks then, whatever it has seen before. What is added to our
// tables, and what is done with an iptables of the old kind, is not told.
//
// It goes on until ctx ends, and is an error before that only if the kernel tells of
// nothing.
func (h *Host) WatchFilter(ctx context.Context, lost func()) error {
	var fd int
	err := enter(h.root.file, func() (err error) {
		fd, err = listenTo(unix.NETLINK_NETFILTER, group(unix.NFNLGRP_NFTABLES))
		return err
	})
	if err != nil {
		return &fault.Error{Op: "watch the host's firewall", Err: err, Fix: "load the kernel's nf_tables"}
	}
	socket := os.NewFile(uintptr(fd), "netlink")
	defer socket.Close()
	defer context.AfterFunc(ctx, func() { _ = socket.SetReadDeadline(time.Now()) })()
	buffer := make([]byte, 64<<10)
	for {
		n, err := socket.Read(buffer)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // it tells more than there is room for
		case err != nil:
			return &fault.Error{Op: "watch the host's firewall", Err: err, Fix: "restart the plugin"}
		case !takesFromOurs(buffer[:n]):
			continue
		}
		release, err := h.write(ctx)
		if err != nil {
			return nil
		}
		clear(h.accepted)
		gone := h.lacking()
		release()
		if gone {
			lost()
		}
	}
}

// lacking says whether something is missing from our tables, and has them looked at if
// so. The kernel tells of what we have taken out ourselves, too: a network that cannot
// be made is in the filter for as long as it is tried, and would be tried again at once,
// for ever. The caller has the turn to write.
func (h *Host) lacking() bool {
	known := h.filter.have
	conn, err := h.root.firewall()
	if err != nil {
		return true
	}
	defer func() { _ = conn.CloseLasting() }()
	sound, err := h.readFilter(conn)
	if err == nil && sound && known.equals(h.filter.have) {
		state := matching
		if !h.surveyed.when.IsZero() {
			state, err = inspect(conn, table(tableName), hostRules(h.ports(), h.surveyed.outward))
		}
		if err == nil && state == matching {
			return false
		}
	}
	h.filter.seen = time.Time{}
	return true
}

// takings are the messages of nf_tables that tell of something that is gone.
var takings = []uint16{unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM}

// takesFromOurs says whether messages of nf_tables tell that something of a table of
// ours is gone. What cannot be read may.
func takesFromOurs(data []byte) bool {
	messages, err := syscall.ParseNetlinkMessage(data)
	if err != nil {
		return true
	}
	for _, m := range messages {
		subsystem, what := m.Header.Type>>8, m.Header.Type&0xff
		if subsystem == unix.NFNL_SUBSYS_NFTABLES && slices.Contains(takings, what) && strings.HasPrefix(tableOf(m.Data), tableName) {
			return true
		}
	}
	return false
}

// tableOf is the table that a message is about: attribute 1 of all those that tell of
// something that is gone (include/uapi/linux/netfilter/nf_tables.h), after a head of
// four bytes.
func tableOf(message []byte) string {
	const head, attribute, named = 4, 4, 1
	for rest := message[min(head, len(message)):]; len(rest) >= attribute; {
		size, kind := int(binary.NativeEndian.Uint16(rest)), binary.NativeEndian.Uint16(rest[2:])
		if size < attribute || size > len(rest) {
			return ""
		}
		if kind == named {
			return strings.TrimRight(string(rest[attribute:size]), "\x00")
		}
		rest = rest[min((size+3)&^3, len(rest)):]
	}
	return ""
}
