use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;
use proptest::prelude::*;

use super::*;
use crate::decode::Unreadable;

const BY_DATA: Index<ConfigMap> = Index::new("data", |map| {
    map.data.iter().flatten().map(|(_, v)| v.clone()).collect()
});

fn map(namespace: &str, name: &str, uid: u8, data: &[u8]) -> ConfigMap {
    let data = data.iter().enumerate();
    ConfigMap {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_string()),
            ..ObjectMeta::default()
        },
        data: Some(data.map(|(i, v)| (i.to_string(), v.to_string())).collect()),
        ..ConfigMap::default()
    }
}

fn object() -> impl Strategy<Value = ConfigMap> {
    let names = (prop_oneof!["a", "b"], prop_oneof!["x", "y", "z"]);
    let content = (0..3_u8, proptest::collection::vec(0..4_u8, 0..3));
    (names, content).prop_map(|((ns, name), (uid, data))| map(&ns, &name, uid, &data))
}

/// What a watch may give: changes, and lists that may be broken off.
fn events() -> impl Strategy<Value = Vec<Event<ConfigMap>>> {
    let list = (proptest::collection::vec(object(), 0..6), any::<bool>());
    let list = list.prop_map(|(objects, whole)| {
        let objects = objects.into_iter().map(Event::InitApply);
        let done = whole.then_some(Event::InitDone);
        [Event::Init]
            .into_iter()
            .chain(objects)
            .chain(done)
            .collect()
    });
    let batch = prop_oneof![
        3 => object().prop_map(|object| vec![Event::Apply(object)]),
        2 => object().prop_map(|object| vec![Event::Delete(object)]),
        1 => list,
    ];
    proptest::collection::vec(batch, 0..24).prop_map(|batches| batches.concat())
}

fn names(objects: &[Arc<ConfigMap>]) -> Vec<String> {
    let mut names: Vec<_> = objects.iter().map(|object| key_of(&**object)).collect();
    names.sort();
    names
}

proptest! {
    #[test]
    fn an_index_says_what_a_scan_of_all_objects_says(events in events()) {
        let indexes = [BY_DATA, Index::by_uid()];
        let (cache, mut writer) = Cache::new(&indexes);
        for event in events {
            writer.write(&event);
            for index in &indexes {
                for key in 0..4_u8 {
                    let key = key.to_string();
                    let all = cache.state().into_iter();
                    let scanned: Vec<_> =
                        all.filter(|object| index.keys(object).contains(&key)).collect();
                    let found = cache.by(index, &key);
                    prop_assert_eq!(names(&found), names(&scanned));
                    for object in found {
                        prop_assert!(scanned.contains(&object));
                    }
                    prop_assert_eq!(cache.names_by(index, &key).len(), scanned.len());
                }
            }
            // Nothing is left of what has no key any more.
            for (_, entries) in &cache.indexes().0 {
                prop_assert!(entries.values().all(|objects| !objects.is_empty()));
            }
        }
    }

    #[test]
    fn changes_add_up_to_what_the_cache_holds(events in events(), late in 0..12_usize) {
        let (cache, mut writer) = Cache::<ConfigMap>::new(&[]);
        let mirror = Arc::new(Mutex::new(BTreeMap::new()));
        for (at, event) in events.into_iter().enumerate() {
            if at == late {
                let mirror = mirror.clone();
                cache.subscribe(move |change| {
                    let key = key_of(&*change.object);
                    let mut mirror = mirror.lock().unwrap();
                    let known = mirror.remove(&key);
                    if !change.is_gone {
                        assert_eq!(known, change.before);
                        mirror.insert(key, change.object.clone());
                    }
                });
            }
            writer.write(&event);
            if at >= late {
                let mirror: Vec<_> = mirror.lock().unwrap().values().cloned().collect();
                prop_assert_eq!(names(&mirror), names(&cache.state()));
                prop_assert!(cache.state().iter().all(|object| mirror.contains(object)));
            }
        }
    }
}

#[tokio::test]
async fn what_went_while_nobody_watched_is_a_change_and_a_list_that_breaks_off_is_none() {
    let (cache, mut writer) = Cache::new(&[BY_DATA]);
    assert!(futures::FutureExt::now_or_never(cache.ready()).is_none());
    writer.write(&Event::Init);
    writer.write(&Event::InitApply(map("a", "x", 1, &[1])));
    assert!(cache.is_empty());
    writer.write(&Event::InitDone);
    cache.ready().await;
    let noted = Arc::new(Mutex::new(Vec::new()));
    let changes = noted.clone();
    cache.subscribe(move |change| {
        let name = change.object.name_any();
        changes
            .lock()
            .unwrap()
            .push((name, change.before.is_some(), change.is_gone));
    });
    let now = || std::mem::take(&mut *noted.lock().unwrap());
    assert_eq!(now(), [("x".to_owned(), false, false)]);
    writer.write(&Event::Init);
    writer.write(&Event::InitApply(map("a", "y", 2, &[2])));
    assert_eq!((now(), cache.by(&BY_DATA, "1").len()), (vec![], 1));
    // The watch begins its list again.
    writer.write(&Event::Init);
    writer.write(&Event::InitApply(map("a", "z", 3, &[3])));
    writer.write(&Event::InitDone);
    let gone = ("x".to_owned(), false, true);
    assert_eq!(now(), [("z".to_owned(), false, false), gone]);
    assert!(cache.by(&BY_DATA, "1").is_empty() && cache.by(&BY_DATA, "2").is_empty());
}

/// Events of a watch whose objects may be impossible to decode.
fn undecoded_events() -> impl Strategy<Value = Vec<Event<Decoded<ConfigMap>>>> {
    fn with(event: Event<ConfigMap>, good: bool) -> Event<Decoded<ConfigMap>> {
        let object = |object: ConfigMap| {
            let unreadable = |metadata| Unreadable {
                metadata: Box::new(metadata),
                problem: "data cannot be read".to_owned(),
            };
            Decoded(if good {
                Ok(object)
            } else {
                Err(unreadable(object.metadata))
            })
        };
        match event {
            Event::Init => Event::Init,
            Event::InitDone => Event::InitDone,
            Event::InitApply(o) => Event::InitApply(object(o)),
            Event::Apply(o) => Event::Apply(object(o)),
            Event::Delete(o) => Event::Delete(object(o)),
        }
    }
    (events(), proptest::collection::vec(any::<bool>(), 256)).prop_map(|(events, good)| {
        let good = good.into_iter().cycle();
        // A list has an object once.
        let mut listed = HashSet::new();
        let events = events.into_iter().filter(move |event| {
            if let Event::InitApply(object) = event {
                return listed.insert(key_of(object));
            }
            listed.clear();
            true
        });
        events.zip(good).map(|(e, good)| with(e, good)).collect()
    })
}

type Uid = Option<String>;

/// What the API server has, by its events: each object's uid, and whether it can be decoded.
#[derive(Default)]
struct Truth {
    objects: BTreeMap<String, (Uid, bool)>,
    listed: BTreeMap<String, (Uid, bool)>,
}

impl Truth {
    fn note(&mut self, event: &Event<Decoded<ConfigMap>>) {
        let of = |o: &Decoded<ConfigMap>| (key_of(o), (o.meta().uid.clone(), o.0.is_ok()));
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => self.listed.extend([of(object)]),
            Event::InitDone => self.objects = std::mem::take(&mut self.listed),
            Event::Apply(object) => self.objects.extend([of(object)]),
            Event::Delete(object) => drop(self.objects.remove(&key_of(object))),
        }
    }
}

proptest! {
    #[test]
    fn an_object_that_cannot_be_decoded_is_neither_lost_nor_taken_for_deleted(
        events in undecoded_events()
    ) {
        let indexes = [BY_DATA, Index::by_uid()];
        let (cache, mut writer) = Cache::new(&indexes);
        let gone = Arc::new(Mutex::new(Vec::new()));
        let noted = gone.clone();
        cache.subscribe(move |change: &Change<ConfigMap>| {
            if change.is_gone {
                noted.lock().unwrap().push((key_of(&*change.object), change.object.uid()));
            }
        });
        let mut truth = Truth::default();
        for event in events {
            truth.note(&event);
            writer.observe(event);
            for (key, (uid, good)) in &truth.objects {
                let (namespace, name) = key.split_once('/').unwrap();
                prop_assert_eq!(cache.is_unreadable(namespace, name), !good);
                let cached = cache.get(namespace, name);
                prop_assert!(cached.is_some() || !good, "{} is lost", key);
                prop_assert!(cached.is_none_or(|c| c.uid() == *uid), "{} is another", key);
            }
            for object in cache.state() {
                let known = truth.objects.get(&key_of(&*object));
                prop_assert!(known.is_some(), "{} is kept", key_of(&*object));
            }
            // No subscriber sees something as gone that is there.
            for (key, uid) in gone.lock().unwrap().drain(..) {
                let there = truth.objects.get(&key);
                let is_gone = there.is_none_or(|(other, good)| *other != uid && !good);
                prop_assert!(is_gone, "{} is there", key);
            }
        }
    }
}
