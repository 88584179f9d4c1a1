// Package etcd keeps a cluster's records in etcd 3.4 or later. It is the
// allocator, the directory and the distributor in one.
//
// # Keys
//
// Values are JSON unless told otherwise; id is a control.SharedID, node a
// control.NodeID, and addr the family and the hex digits of an address, which
// sort as addresses do.
//
//	instance                 a name drawn at random by the first host: a store that
//	                         was wiped, or set back, has another; with how the
//	                         hosts of this cluster encrypt, which all others have
//	                         to agree with
//	nodes/<node>/info        control.Node
//	nodes/<node>/alive       the host's boot, as text; with a lease
//	nodes/<node>/lost        how long the host has been away, by those who watch; it
//	                         goes when the host is back
//	settling                 the store was set back; goes by itself, see settle.go
//	specs/<id>               control.Network
//	vnis/<6 hex digits>      the id of the network that has the VNI, as text
//	names/<name>             the id of the network that has the name, as text
//	nets/<id>/blocks/<addr>-<bits>   which host owns the block, and its VTEP and MAC
//	nets/<id>/addrs/<addr>           the same of a single address outside all blocks
//	nets/<id>/restored       the network was lost and is back; likewise
//	nets/<id>/vouched/<addr>-<bits>/<node>   the host had it before the store lost it,
//	                         say others, and it has not come yet; see vouch.go
//	nets/<id>/freed/<addr>-<bits>    the block was given up; the revision tells when
//
// Networks are apart from their claims, because every host watches all networks
// but only the claims of those it has joined. With everything below nets, one
// claim in a cluster of 1000 hosts would be sent 1000 times.
//
// # Claims
//
// A claim is one transaction: the block is there only if neither it nor an
// address in it was, the address only if neither it nor the block around it
// was, and both only if the network is unchanged since it was read. A host that
// restores a block gives up its own addresses in it with that. A claim is
// an announcement too, so what is claimed and what is announced cannot differ.
//
// An answer may be lost. The value carries a number drawn for the call, so that
// asking again for the same thing tells whether it was granted; only if time is
// up before that is the outcome unknown.
//
// # Watching
//
// One goroutine of each Store, the keeper, looks at the store three times in a
// lease and whenever something is strange: the connection breaks, an attempt
// fails, or an answer is of an older revision than one before. It needs to: a
// watch waits silently for ever if its store was replaced by one whose revisions
// are lower. A store that has come further again since it was set back the keeper knows by
// what was written at a revision of which the watches have told. When it finds the store
// away, back, or another, every watch begins anew with a whole list: those of the networks'
// claims two at a time, since all hosts ask for them at that moment.
//
// A record that cannot be read, of a newer version or damaged, is there: watches go on with
// what it said before, and lists name it as unread.
package etcd
