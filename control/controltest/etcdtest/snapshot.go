package etcdtest

import (
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

func (s *Server) snapshotFile() string { return filepath.Join(s.folder, "etcd.db") }

// SaveSnapshot does as `etcdctl snapshot save`.
func (s *Server) SaveSnapshot() {
	s.t.Helper()
	client := clientv3.Config{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()}
	if _, err := snapshot.NewV3(zap.NewNop()).Save(s.t.Context(), client, s.snapshotFile()); err != nil {
		s.t.Fatal(err)
	}
}

// RestoreSnapshot has it begin anew with what `etcdutl snapshot restore` makes of the
// snapshot, with --bump-revision and --mark-compacted unless bump is 0. It is of the
// current release.
func (s *Server) RestoreSnapshot(bump uint64) {
	s.t.Helper()
	s.Kill()
	if err := os.RemoveAll(s.member.Dir); err != nil {
		s.t.Fatal(err)
	}
	err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: s.snapshotFile(), Name: s.member.Name, OutputDataDir: s.member.Dir,
		PeerURLs: []string{s.member.Peer}, InitialCluster: s.member.Cluster, InitialClusterToken: "etcd-cluster",
		RevisionBump: bump, MarkCompacted: bump > 0,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.Restart()
}
