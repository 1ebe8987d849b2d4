use super::Redis;

/// Keys looked at in one call.
const SCAN_KEYS: usize = 1_000;

impl Redis {
    pub(in crate::cache) async fn wipe(&self) -> Option<u64> {
        let (mut cursor, mut removed) = (0_u64, 0);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{}:*", self.0.prefix)).arg("COUNT").arg(SCAN_KEYS);
            let (next, names): (u64, Vec<Vec<u8>>) = self.0.bulk.command(scan).await?;
            if !names.is_empty() {
                let mut unlink = redis::cmd("UNLINK");
                unlink.arg(&names[..]);
                removed += self.0.bulk.command::<u64>(unlink).await?;
            }
            if next == 0 {
                return Some(removed);
            }
            cursor = next;
        }
    }
}
